//! Runs the bodies of the fuzz targets over what a real server sent, and over every file in `corpus/`.

use std::{fs, path::Path};

const FIXTURES: &str = "../protocol/tests/fixtures/pg15";

fn hex(text: &str) -> Vec<u8> {
    let digit = |c: u8| char::from(c).to_digit(16).unwrap() as u8;
    text.as_bytes()
        .as_chunks()
        .0
        .iter()
        .map(|[high, low]| digit(*high) << 4 | digit(*low))
        .collect()
}

fn lines(file: &str) -> Vec<String> {
    let path = Path::new(FIXTURES).join(file);
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

/// What the server said in a recorded session, in one piece.
fn server(file: &str) -> Vec<u8> {
    lines(file).iter().filter_map(|line| line.strip_prefix("< ")).flat_map(hex).collect()
}

fn corpus(target: &str, run: fn(&[u8])) {
    let Ok(files) = fs::read_dir(Path::new("corpus").join(target)) else { return };
    for file in files {
        run(&fs::read(file.unwrap().path()).unwrap());
    }
}

const SESSIONS: [&str; 4] = ["login-scram.txt", "login-md5.txt", "login-trust.txt", "stream.txt"];

#[test]
fn frame() {
    SESSIONS.iter().for_each(|file| factlib_fuzz::frame(&server(file)));
    corpus("frame", factlib_fuzz::frame);
}

#[test]
fn pgoutput() {
    for file in ["pgoutput.txt", "pgoutput-binary.txt"] {
        lines(file)
            .iter()
            .for_each(|line| factlib_fuzz::pgoutput(&hex(line.rsplit('|').next().unwrap())));
    }
    corpus("pgoutput", factlib_fuzz::pgoutput);
}

#[test]
fn handshake() {
    SESSIONS.iter().for_each(|file| factlib_fuzz::handshake(&server(file)));
    corpus("handshake", factlib_fuzz::handshake);
}
