//! One request to the pages of a running gateway.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// For connecting, and for each wait for more of an answer.
const LIMIT: Duration = Duration::from_secs(5);
/// No answer that this program asks for is longer.
const LONGEST: u64 = 16 * 1024 * 1024;

/// Sends a request without a body to `authority`, a `host:port`; status and body of the answer.
pub(super) fn request(authority: &str, method: &str, path: &str) -> io::Result<(u16, String)> {
    let mut stream = connect(authority)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let length = if method == "GET" { "" } else { "Content-Length: 0\r\n" };
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n{length}\r\n")?;
    let mut page = Vec::new();
    stream.take(LONGEST).read_to_end(&mut page)?;
    let page = String::from_utf8_lossy(&page);
    let foreign = || io::Error::other("it does not speak HTTP");
    let rest = page.strip_prefix("HTTP/1.").ok_or_else(foreign)?;
    let status = rest.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(foreign)?;
    let body = page.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    Ok((status, body.unwrap_or_default()))
}

/// The first address that takes the connection.
fn connect(authority: &str) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = authority.to_socket_addrs()?.collect();
    let mut last = io::Error::other("its name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, LIMIT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
