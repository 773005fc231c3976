//! A killed test leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;
use testkit::{process, wait};

#[test]
fn servers_and_data_go_with_a_process_that_was_killed() {
    let mut parent = Command::new(env!("CARGO_BIN_EXE_testkit"))
        .arg("serve")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines().map(Result::unwrap);
    let said: Vec<String> = lines.take(4).collect();
    let pids: Vec<u32> = said[2]
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect();
    let data = PathBuf::from(said[3].strip_prefix("# data in ").unwrap());
    assert_eq!(pids.len(), 2, "{said:?}");
    assert!(pids.iter().all(|pid| process::is_running(*pid)) && data.exists());

    let lock = fs::read_to_string(data.join("postmaster.pid")).unwrap();
    let segment = lock.lines().nth(6).unwrap().split_whitespace().nth(1).unwrap().to_owned();
    assert!(segments().contains(&segment), "{segment}");

    parent.kill().unwrap();
    parent.wait().unwrap();
    wait::until("the servers gone", Duration::from_secs(10), || {
        !pids.iter().any(|pid| process::is_running(*pid))
    });
    // The folder of the whole process is two above: PROCESS/pg0/data.
    let folder = data.parent().unwrap().parent().unwrap();
    assert!(folder.file_name().unwrap().to_str().unwrap().starts_with("factlib-test-"));
    wait::until("the data gone", Duration::from_secs(15), || !folder.exists());
    assert!(!segments().contains(&segment));
}

/// The numbers of the System V shared memory segments that there are.
fn segments() -> Vec<String> {
    let table = fs::read_to_string("/proc/sysvipc/shm").unwrap();
    let number = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
    table.lines().skip(1).filter_map(number).collect()
}
