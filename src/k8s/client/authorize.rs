//! Adds the user's credential to requests, and retries with a new one if the server refuses it.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use kube::client::Body;
use tokio::time::sleep;
use tower::{BoxError, Service};

use super::{
    answer::{Answer, Unexpected, pause, redirected},
    contact::Contact,
    transport::{Room, Transports},
};
use crate::k8s::{
    credentials::{Renewal, User},
    reach,
    sign_in::Failure,
};

/// Error: there is no credential, so the request was not sent.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .0.reason)]
pub struct NotSignedIn(pub Failure);

/// Maximum number of redirects, as in net/http.
const MOST_REDIRECTS: usize = 10;

/// Maximum total pause of a request by Retry-After. Less than REQUEST_TIMEOUT.
const LONGEST_WAIT: Duration = Duration::from_secs(9);

/// Service that kube sends requests through.
#[derive(Clone)]
pub struct Authorized {
    user: User,
    transports: Arc<Transports>,
    contact: Contact,
    /// A watch must not start a sign-in, because no client waits for it. Its answer lasts for minutes.
    is_watch: bool,
}

impl Authorized {
    pub fn requests(user: User, transports: Arc<Transports>, contact: Contact) -> Self {
        Self { user, transports, contact, is_watch: false }
    }

    pub fn watches(user: User, transports: Arc<Transports>, contact: Contact) -> Self {
        Self { user, transports, contact, is_watch: true }
    }

    async fn send(self, request: Request<Body>) -> Result<Response<Answer>, BoxError> {
        let (mut parts, body) = request.into_parts();
        let mut renewal = Renewal::new(&self.user);
        let mut body = Some(body);
        let (mut is_again, mut redirects, mut waited) = (false, 0, Duration::ZERO);
        loop {
            let credential = match self.is_watch {
                false => self.user.credential().await.map_err(NotSignedIn)?,
                true => self.user.present().ok_or_else(|| {
                    NotSignedIn(Failure::new("nobody has signed in since the credential expired".to_owned()))
                })?,
            };
            let sent = body.take().unwrap_or_else(Body::empty);
            // A streamed body can be sent only once.
            body = sent.try_clone();
            let mut request = Request::from_parts(parts.clone(), sent);
            request.headers_mut().extend(self.user.headers(&credential));
            let transport = self.transports.of(credential.identity.as_ref());
            let (client, room) = match self.is_watch {
                false if is_again => (transport.alone().clone(), Room::default()),
                false => (transport.for_requests().clone(), Room::default()),
                true => transport.for_watch(),
            };
            let answer = client.request(request).await;
            self.contact.note(answer.is_ok());
            let is_refused = match &answer {
                Ok(response) => response.status() == StatusCode::UNAUTHORIZED,
                Err(error) => credential.identity.is_some() && reach::is_about_identity(error),
            };
            if !is_refused && answer.is_ok() {
                self.user.accepted(&credential);
            }
            if is_refused && renewal.again(&credential).await && body.is_some() {
                continue;
            }
            let is_get = parts.method == Method::GET && body.is_some();
            let response = match answer {
                Ok(response) => response,
                // As in net/http: a server may close an idle connection just when it is reused, and a GET can be repeated
                // safely.
                Err(error) if is_get && !self.is_watch && !is_again && !is_refused && !error.is_connect() => {
                    is_again = true;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if let Some(target) = redirected(&parts.uri, &response).filter(|_| is_get && redirects < MOST_REDIRECTS) {
                (parts.uri, redirects) = (target, redirects + 1);
                continue;
            }
            if let Some(pause) = pause(&response).filter(|pause| waited + *pause <= LONGEST_WAIT)
                && !self.is_watch
                && body.is_some()
            {
                waited += pause;
                sleep(pause).await;
                continue;
            }
            return match Unexpected::of(&parts.uri, &response) {
                Some(unexpected) => Err(unexpected.into()),
                None => Ok(Answer::of(response, room)),
            };
        }
    }
}

impl Service<Request<Body>> for Authorized {
    type Response = Response<Answer>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, sync::Mutex};

    use http::HeaderMap;
    use http_body_util::BodyExt;
    use rustls::{ClientConfig, RootCertStore};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::k8s::{credentials::Method as SignsIn, dial::Dialer};

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

    /// A server that sends these answers, one per request. An empty answer closes the connection.
    struct Server {
        client: Authorized,
        url: String,
        /// Paths of the requests, each with the number of its connection.
        asked: Arc<Mutex<Vec<(usize, String)>>>,
    }

    impl Server {
        async fn start(answers: &[&'static str]) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let asked: Arc<Mutex<Vec<(usize, String)>>> = Arc::default();
            let answers = Arc::new(Mutex::new(answers.iter().copied().collect::<VecDeque<_>>()));
            let noting = asked.clone();
            tokio::spawn(async move {
                for number in 0.. {
                    let (mut io, _) = listener.accept().await.unwrap();
                    let (asked, answers) = (noting.clone(), answers.clone());
                    tokio::spawn(async move {
                        loop {
                            let mut head = Vec::new();
                            while !head.ends_with(b"\r\n\r\n") {
                                let Ok(byte) = io.read_u8().await else { return };
                                head.push(byte);
                            }
                            let head = String::from_utf8(head).unwrap();
                            asked.lock().unwrap().push((number, head.split(' ').nth(1).unwrap().to_owned()));
                            let answer = answers.lock().unwrap().pop_front().unwrap_or_default();
                            if answer.is_empty() {
                                return;
                            }
                            io.write_all(answer.as_bytes()).await.unwrap();
                        }
                    });
                }
            });
            let tls = ClientConfig::builder_with_provider(crate::tls::provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth();
            let transports = Transports::new(tls.clone(), Dialer::new(None, &tls).unwrap(), None);
            let user = User::new(SignsIn::Fixed(Arc::default()), HeaderMap::new());
            Self { client: Authorized::requests(user, Arc::new(transports), Contact::default()), url, asked }
        }

        async fn ask(&self, method: Method) -> Result<String, BoxError> {
            let request = Request::builder().method(method).uri(format!("{}/api", self.url)).body(Body::empty());
            let answer = self.client.clone().send(request.unwrap()).await?;
            let status = answer.status();
            let body = answer.into_body().collect().await?.to_bytes();
            Ok(format!("{} {}", status.as_u16(), String::from_utf8_lossy(&body)))
        }

        fn asked(&self) -> Vec<(usize, String)> {
            self.asked.lock().unwrap().clone()
        }
    }

    #[tokio::test]
    async fn a_get_that_a_used_connection_does_not_answer_is_sent_on_a_new_one() {
        let server = Server::start(&[OK, "", OK, ""]).await;
        assert_eq!(server.ask(Method::GET).await.unwrap(), "200 {}");
        assert_eq!(server.ask(Method::GET).await.unwrap(), "200 {}");
        let asked: Vec<usize> = server.asked().into_iter().map(|(connection, _)| connection).collect();
        assert!(asked.len() == 3 && asked[1] != asked[2], "{asked:?}");
        assert!(server.ask(Method::POST).await.is_err(), "what may have been done is not done twice");
        assert_eq!(server.asked().len(), 4);
    }

    #[tokio::test]
    async fn a_redirect_on_the_same_host_is_followed_and_another_is_named() {
        let moved = "HTTP/1.1 307 Temporary Redirect\r\nLocation: /moved/api\r\nContent-Length: 0\r\n\r\n";
        let away = "HTTP/1.1 302 Found\r\nLocation: https://login.test/\r\nContent-Length: 0\r\n\r\n";
        let server = Server::start(&[moved, OK, away]).await;
        assert_eq!(server.ask(Method::GET).await.unwrap(), "200 {}");
        assert_eq!(server.asked()[1].1, "/moved/api");
        let refused = server.ask(Method::GET).await.unwrap_err();
        assert!(refused.downcast::<Unexpected>().unwrap().to_string().contains("https://login.test/"));
        let circle = Server::start(&[moved; 20]).await;
        assert!(circle.ask(Method::GET).await.is_err());
        assert_eq!(circle.asked().len(), MOST_REDIRECTS + 1);
    }

    #[tokio::test]
    async fn a_server_that_asks_for_a_moment_gets_it() {
        let busy = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n";
        let long = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 30\r\nContent-Length: 0\r\n\r\n";
        let server = Server::start(&[busy, OK, long]).await;
        assert_eq!(server.ask(Method::GET).await.unwrap(), "200 {}");
        assert_eq!(server.ask(Method::GET).await.unwrap(), "503 ", "nobody waits for as long");
    }
}
