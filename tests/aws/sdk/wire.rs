//! A server that says what it is told to, byte for byte, and keeps what it was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET /data/key?x-id=GetObject HTTP/1.1`
    pub line: String,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// The value of a header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str()).unwrap_or_default()
    }

    /// Region that the request was signed for.
    pub fn region(&self) -> &str {
        let scope = self.header("authorization").split("Credential=").nth(1).unwrap_or_default();
        scope.split('/').nth(2).unwrap_or_default()
    }
}

/// The server. Its threads end with the process.
pub struct Wire {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Wire {
    /// Answers the request of each number, from 0, with `answer`; an empty answer cuts the connection.
    pub fn new(answer: impl Fn(usize, &Request) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (log, answer) = (seen.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || {
                    let Some(request) = read(&stream) else { return };
                    let number = {
                        let mut log = log.lock().unwrap();
                        log.push(request.clone());
                        log.len() - 1
                    };
                    drop((&stream).write_all(&answer(number, &request)));
                });
            }
        });
        Self { address, seen }
    }

    /// Answers every request with the next of `answers`, and with the last one from then on.
    pub fn saying(answers: Vec<Vec<u8>>) -> Self {
        Self::new(move |number, _| answers[number.min(answers.len() - 1)].clone())
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut next = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|&length| length > 0)?;
        Some(line.trim_end().to_owned())
    };
    let line = next()?;
    let mut headers = Vec::new();
    loop {
        let header = next()?;
        let Some((name, value)) = header.split_once(':') else { break };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut request = Request { line, headers, body: Vec::new() };
    request.body = vec![0; request.header("content-length").parse().unwrap_or(0)];
    reader.read_exact(&mut request.body).ok()?;
    Some(request)
}

/// An answer that ends the connection. `Content-Length` is that of the body unless `headers` say otherwise.
pub fn reply(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status} Whatever\r\nConnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    [text.as_bytes(), b"\r\n", body].concat()
}

/// An error of S3.
pub fn s3_error(status: u16, code: &str, message: &str) -> Vec<u8> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>{message}</Message>\
         <RequestId>REQ1</RequestId></Error>"
    );
    reply(status, &[("x-amz-request-id", "REQ1"), ("content-type", "application/xml")], body.as_bytes())
}

/// An error of KMS.
pub fn kms_error(code: &str, message: &str) -> Vec<u8> {
    let body = format!("{{\"__type\":\"{code}\",\"message\":\"{message}\"}}");
    reply(400, &[("x-amzn-requestid", "REQ2"), ("content-type", "application/x-amz-json-1.1")], body.as_bytes())
}

/// An error of STS.
pub fn sts_error(status: u16, code: &str, message: &str) -> Vec<u8> {
    let body = format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
         <Code>{code}</Code><Message>{message}</Message></Error><RequestId>REQ3</RequestId></ErrorResponse>"
    );
    reply(status, &[("x-amzn-requestid", "REQ3"), ("content-type", "text/xml")], body.as_bytes())
}
