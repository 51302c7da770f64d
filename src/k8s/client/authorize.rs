//! Requests with the credential of a user, sent once more with another one where a server refuses it.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use kube::client::Body;
use tower::{BoxError, Service};

use super::transport::{HttpClient, Transport, Transports};
use crate::k8s::{
    credentials::{Renewal, User},
    reach,
    sign_in::Failure,
};

/// No credential, and so no request.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .0.reason)]
pub struct NotSignedIn(pub Failure);

/// A client as kube wants it.
#[derive(Clone)]
pub struct Authorized {
    user: User,
    transports: Arc<Transports>,
    of: fn(&Transport) -> &HttpClient,
    /// Whether it may start a sign-in.
    signs_in: bool,
}

impl Authorized {
    pub fn requests(user: User, transports: Arc<Transports>) -> Self {
        Self { user, transports, of: |transport| &transport.requests, signs_in: true }
    }

    /// Nobody waits for a watch: it starts no sign-in.
    pub fn watches(user: User, transports: Arc<Transports>) -> Self {
        Self { user, transports, of: |transport| &transport.watches, signs_in: false }
    }

    async fn send(self, request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
        let (parts, body) = request.into_parts();
        let mut renewal = Renewal::new(&self.user);
        let mut body = Some(body);
        loop {
            let credential = match self.signs_in {
                true => self.user.credential().await.map_err(NotSignedIn)?,
                false => self.user.present().ok_or_else(|| {
                    NotSignedIn(Failure::new("nobody has signed in since the credential expired".to_owned()))
                })?,
            };
            let sent = body.take().unwrap_or_else(Body::empty);
            // One that is streamed is sent once.
            body = sent.try_clone();
            let mut request = Request::from_parts(parts.clone(), sent);
            request.headers_mut().extend(self.user.headers(&credential));
            let transport = self.transports.of(credential.identity.as_ref());
            let answer = (self.of)(&transport).request(request).await;
            let is_refused = match &answer {
                Ok(response) => response.status() == StatusCode::UNAUTHORIZED,
                Err(error) => credential.identity.is_some() && reach::is_about_identity(error),
            };
            if !is_refused && answer.is_ok() {
                self.user.accepted(&credential);
            }
            if !is_refused || !renewal.again(&credential) || body.is_none() {
                return answer.map_err(BoxError::from);
            }
        }
    }
}

impl Service<Request<Body>> for Authorized {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}
