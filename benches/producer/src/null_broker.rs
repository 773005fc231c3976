//! A broker that takes everything and keeps nothing: what a producer costs, without what a log costs.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

const PRODUCE: i16 = 0;
const METADATA: i16 = 3;
const API_VERSIONS: i16 = 18;
const INIT_PRODUCER_ID: i16 = 22;

/// Key, lowest and highest version: what the clients have in common.
const APIS: [(i16, i16, i16); 4] =
    [(PRODUCE, 3, 7), (METADATA, 0, 4), (API_VERSIONS, 0, 3), (INIT_PRODUCER_ID, 0, 1)];

/// Serves for ever; says its port first.
pub fn serve() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    println!("{port}");
    io::stdout().flush()?;
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            // The client has gone.
            let _ = answer(stream, port);
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream, port: u16) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = Vec::new();
    let mut response = Vec::new();
    loop {
        let mut len = [0; 4];
        stream.read_exact(&mut len)?;
        request.resize(u32::from_be_bytes(len) as usize, 0);
        stream.read_exact(&mut request)?;
        let mut r = Reader(&request);
        let (api, version, correlation) = (r.i16(), r.i16(), r.i32());
        r.string();
        response.clear();
        response.extend([0; 4]);
        response.extend(correlation.to_be_bytes());
        match api {
            PRODUCE => produce(&mut r, version, &mut response),
            METADATA => metadata(&mut r, port, &mut response),
            API_VERSIONS => api_versions(version, &mut response),
            INIT_PRODUCER_ID => {
                response.extend([0; 4 + 2]);
                response.extend(4000_i64.to_be_bytes());
                response.extend(0_i16.to_be_bytes());
            }
            other => panic!("request {other}"),
        }
        let len = (response.len() - 4) as u32;
        response[..4].copy_from_slice(&len.to_be_bytes());
        stream.write_all(&response)?;
    }
}

fn produce(r: &mut Reader<'_>, version: i16, out: &mut Vec<u8>) {
    let (_transactional_id, _acks, _timeout) = (r.string(), r.i16(), r.i32());
    let topics = r.i32();
    out.extend(topics.to_be_bytes());
    for _ in 0..topics {
        let name = r.string();
        out.extend((name.len() as i16).to_be_bytes());
        out.extend(name);
        let partitions = r.i32();
        out.extend(partitions.to_be_bytes());
        for _ in 0..partitions {
            out.extend(r.i32().to_be_bytes());
            let len = r.i32() as usize;
            r.take(len);
            out.extend(0_i16.to_be_bytes());
            out.extend(0_i64.to_be_bytes());
            out.extend((-1_i64).to_be_bytes());
            if version >= 5 {
                out.extend(0_i64.to_be_bytes());
            }
        }
    }
    out.extend(0_i32.to_be_bytes());
}

/// Version 4 is the lowest that all ask for.
fn metadata(r: &mut Reader<'_>, port: u16, out: &mut Vec<u8>) {
    let count = r.i32().max(0);
    let names: Vec<&[u8]> = (0..count).map(|_| r.string()).collect();
    out.extend(0_i32.to_be_bytes());
    out.extend(1_i32.to_be_bytes());
    out.extend(1_i32.to_be_bytes());
    string(b"127.0.0.1", out);
    out.extend(i32::from(port).to_be_bytes());
    out.extend((-1_i16).to_be_bytes());
    string(b"null-broker", out);
    out.extend(1_i32.to_be_bytes());
    // rskafka asks for all topics.
    let names = if names.is_empty() { vec![&b"bench"[..]] } else { names };
    out.extend((names.len() as i32).to_be_bytes());
    for name in names {
        out.extend(0_i16.to_be_bytes());
        string(name, out);
        out.push(0);
        out.extend(12_i32.to_be_bytes());
        for index in 0..12_i32 {
            out.extend(0_i16.to_be_bytes());
            out.extend(index.to_be_bytes());
            out.extend(1_i32.to_be_bytes());
            for _ in 0..2 {
                out.extend(1_i32.to_be_bytes());
                out.extend(1_i32.to_be_bytes());
            }
        }
    }
}

fn api_versions(version: i16, out: &mut Vec<u8>) {
    out.extend(0_i16.to_be_bytes());
    match version {
        3.. => out.push(APIS.len() as u8 + 1),
        _ => out.extend((APIS.len() as i32).to_be_bytes()),
    }
    for (key, min, max) in APIS {
        for field in [key, min, max] {
            out.extend(field.to_be_bytes());
        }
        if version >= 3 {
            out.push(0);
        }
    }
    if version >= 1 {
        out.extend(0_i32.to_be_bytes());
    }
    if version >= 3 {
        out.push(0);
    }
}

fn string(text: &[u8], out: &mut Vec<u8>) {
    out.extend((text.len() as i16).to_be_bytes());
    out.extend(text);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len);
        self.0 = rest;
        head
    }

    fn i16(&mut self) -> i16 {
        i16::from_be_bytes(self.take(2).try_into().expect("two bytes"))
    }

    fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.take(4).try_into().expect("four bytes"))
    }

    fn string(&mut self) -> &'a [u8] {
        let len = self.i16();
        self.take(usize::try_from(len).unwrap_or(0))
    }
}
