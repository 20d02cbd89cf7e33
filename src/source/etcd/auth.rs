//! Who we are to etcd: a token for a user and a password, carried by every request.
//!
//! The token outlives connections (every member takes it), because each authentication costs etcd
//! some 50 ms of bcrypt and a thousand gateways may come back at once. A refused one is replaced.

use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error as EtcdError};
use hyper::header::HeaderValue;
use tokio::time::timeout;
use tonic::transport::Channel;
use tower::util::{BoxCloneSyncService, ServiceExt};

use super::failure::Failure;

/// What etcd gave for user and password.
#[derive(Clone)]
pub(super) struct Token(HeaderValue);

/// A client on `channel` whose requests carry `token`. Members without a leader refuse them: what
/// they hold may be old and no change would reach them.
pub(super) async fn client(channel: &Channel, token: Option<&Token>) -> Result<Client, Failure> {
    let token = token.cloned();
    let signed = channel
        .clone()
        .map_request(move |mut request: hyper::Request<tonic::body::Body>| {
            if let Some(Token(value)) = &token {
                request.headers_mut().insert("token", value.clone());
            }
            request
        })
        .map_err(Into::into);
    let channel = etcd_client::Channel::Custom(BoxCloneSyncService::new(signed));
    let options = ConnectOptions::new().with_require_leader(true);
    // Without a user in the options this sends nothing.
    Client::from_channel(channel, Some(options))
        .await
        .map_err(|error| Failure::from_etcd("prepare the connection", &error))
}

/// Asks for a token. `None`: authentication is off in etcd, nothing is needed.
pub(super) async fn authenticate(
    channel: &Channel,
    (user, password): &(Box<str>, Box<str>),
    limit: Duration,
) -> Result<Option<Token>, Failure> {
    let mut auth = client(channel, None).await?.auth_client();
    let request = auth.authenticate(user.to_string(), password.to_string());
    let answer = timeout(limit, request).await.map_err(|_| Failure::timeout("authenticate", limit))?;
    match answer {
        Ok(response) => match HeaderValue::from_str(response.token()) {
            Ok(mut value) => {
                value.set_sensitive(true);
                Ok(Some(Token(value)))
            }
            Err(_) => Err(Failure::Refused("etcd gave a token that no header can carry".into())),
        },
        Err(EtcdError::GRpcStatus(status)) if status.message().contains("authentication is not enabled") => {
            tracing::warn!("authentication is off in etcd; deployment.etcd.user has no effect");
            Ok(None)
        }
        Err(EtcdError::GRpcStatus(status)) if status.message().contains("invalid user ID or password") => {
            Err(Failure::Refused(format!(
                "etcd refuses user {user}: it does not exist or its password is another"
            )))
        }
        Err(error) => Err(Failure::from_etcd("authenticate", &error)),
    }
}
