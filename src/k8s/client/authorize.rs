//! Requests with the credential of a user, sent once more with another one where a server refuses it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use kube::client::Body;
use tower::{BoxError, Service};

use super::{
    contact::Contact,
    transport::{Room, Transports},
};
use crate::k8s::{
    credentials::{Renewal, User},
    reach,
    sign_in::Failure,
};

/// No credential, and so no request.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .0.reason)]
pub struct NotSignedIn(pub Failure);

/// The body of an answer.
pub struct Answer {
    body: Incoming,
    _room: Room,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A client as kube wants it.
#[derive(Clone)]
pub struct Authorized {
    user: User,
    transports: Arc<Transports>,
    contact: Contact,
    /// Nobody waits for a watch: it starts no sign-in. Its answer lasts for minutes.
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
        let (parts, body) = request.into_parts();
        let mut renewal = Renewal::new(&self.user);
        let mut body = Some(body);
        loop {
            let credential = match self.is_watch {
                false => self.user.credential().await.map_err(NotSignedIn)?,
                true => self.user.present().ok_or_else(|| {
                    NotSignedIn(Failure::new("nobody has signed in since the credential expired".to_owned()))
                })?,
            };
            let sent = body.take().unwrap_or_else(Body::empty);
            // One that is streamed is sent once.
            body = sent.try_clone();
            let mut request = Request::from_parts(parts.clone(), sent);
            request.headers_mut().extend(self.user.headers(&credential));
            let transport = self.transports.of(credential.identity.as_ref());
            let (client, room) = match self.is_watch {
                false => (transport.for_requests(), None),
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
            if !is_refused || !renewal.again(&credential) || body.is_none() {
                return answer.map(|answer| answer.map(|body| Answer { body, _room: room })).map_err(BoxError::from);
            }
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
