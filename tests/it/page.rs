//! The page in a real browser, where there is one: a headless Chromium, by the name of Debian's package or by
//! `CHROMIUM`. Its pictures are left in `target/page`, for people to look at.

use crate::support::{PATIENCE, drop_slots, emit, relay, skipped, wait_confirmed, wait_state};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;
use testkit::{Kafka, Owlpost, Postgres};

const FACT: &[u8] = br#"{"aggregate_type":"order","aggregate_id":"1","event_type":"paid"}"#;

/// Name, window, and whether the reader likes it dark.
const VIEWS: [(&str, &str, bool); 4] = [
    ("phone", "390,1700", false),
    ("phone-dark", "390,1700", true),
    ("desktop", "1280,1000", false),
    ("desktop-dark", "1280,1000", true),
];

struct Chromium {
    binary: String,
    profile: tempfile::TempDir,
}

impl Chromium {
    /// None where there is no browser, which is said loudly.
    fn find() -> Option<Self> {
        let named = std::env::var("CHROMIUM").ok();
        let names = named.into_iter().chain(["chromium".into(), "chromium-browser".into()]);
        for binary in names {
            if Command::new(&binary).arg("--version").output().is_ok() {
                return Some(Self { binary, profile: tempfile::tempdir().unwrap() });
            }
        }
        skipped("there is no Chromium for the page (Debian's package chromium)");
        None
    }

    #[track_caller]
    fn run(&self, url: &str, window: &str, dark: bool, what: &[&str]) -> Output {
        let scheme = if dark { "preferredColorScheme=0" } else { "preferredColorScheme=1" };
        let output = Command::new(&self.binary)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
            .args(["--disable-dev-shm-usage", "--no-first-run", "--enable-logging=stderr"])
            .arg(format!("--user-data-dir={}", self.profile.path().display()))
            .arg(format!("--window-size={window}"))
            .arg(format!("--blink-settings={scheme}"))
            .args(what)
            .arg(url)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        // What the page's policy forbids is said there, too.
        let complaints: Vec<_> = said.lines().filter(|line| line.contains("CONSOLE")).collect();
        let ours = complaints.iter().filter(|line| !line.contains("ERR_EMPTY_RESPONSE"));
        assert_eq!(ours.count(), 0, "{complaints:?}");
        output
    }

    /// What the page has become after so much of its own time.
    fn dom(&self, url: &str, milliseconds: u32) -> String {
        let budget = format!("--virtual-time-budget={milliseconds}");
        let output = self.run(url, "390,1500", false, &["--dump-dom", &budget]);
        String::from_utf8(output.stdout).unwrap()
    }

    fn picture(&self, url: &str, state: &str) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/page");
        fs::create_dir_all(&folder).unwrap();
        for (view, window, dark) in VIEWS {
            let path: PathBuf = folder.join(format!("{state}-{view}.png"));
            let _ = fs::remove_file(&path);
            let screenshot = format!("--screenshot={}", path.display());
            self.run(url, window, dark, &[&screenshot, "--virtual-time-budget=1500"]);
            let png = fs::read(&path).unwrap();
            assert!(png.starts_with(b"\x89PNG") && png.len() > 5000, "{}", path.display());
        }
    }
}

/// Stands between browser and relay: notes what is asked, and answers nothing more after so many questions.
struct Between {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Between {
    fn start(relay: &Owlpost, answers: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, to) = (listener.local_addr().unwrap().port(), relay.health_port());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 4096];
                let Ok(read) = stream.read(&mut request) else { continue };
                let head = String::from_utf8_lossy(&request[..read]).into_owned();
                let Some(path) = head.split(' ').nth(1) else { continue };
                let mut noted = noted.lock().unwrap();
                noted.push(path.to_owned());
                if noted.len() > answers {
                    continue;
                }
                let mut relay = TcpStream::connect(("127.0.0.1", to)).unwrap();
                relay.write_all(&request[..read]).unwrap();
                let mut answer = Vec::new();
                relay.read_to_end(&mut answer).unwrap();
                let _ = stream.write_all(&answer);
            }
        });
        Self { port, asked }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }
}

#[test]
fn a_browser_shows_each_state_and_keeps_up_with_it() {
    let Some(chromium) = Chromium::find() else { return };
    let postgres = Postgres::builder().setting("max_slot_wal_keep_size", "2GB").start();
    let kafka = Kafka::builder().start();
    kafka.create_topic("page.order", 4, &[]);
    let relay = relay("page", &postgres, &kafka)
        .env("SLOT_POLL_INTERVAL", "1s")
        .env("REQUEST_TIMEOUT", "1s")
        .env("STALL_TIMEOUT", "1s")
        .env("FAILURE_LINGER", "10m")
        .spawn();
    relay.wait_ready();
    let url = format!("http://127.0.0.1:{}/", relay.health_port());
    let status = |pointer: &str| {
        let (_, text) = relay.get("/status.json").unwrap();
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        status.pointer(pointer).cloned().unwrap_or_default()
    };
    // Something for the lines to show.
    let mut facts = 0;
    relay.wait_until("some history", PATIENCE, || {
        facts = (facts + 37) % 50;
        (0..facts).for_each(|_| _ = emit(&postgres, true, "page", FACT));
        status("/history/facts_per_second").as_array().is_some_and(|rates| rates.len() > 5)
    });
    wait_confirmed(&relay, &postgres, PATIENCE);

    let between = Between::start(&relay, 1000);
    let dom = chromium.dom(&between.url(), 4000);
    assert!(dom.contains("class=\"good\""), "{dom}");
    assert!(dom.contains("<polyline"), "{dom}");
    let asked = between.asked.lock().unwrap().clone();
    assert_eq!(asked[0], "/");
    assert!(asked.iter().filter(|path| *path == "/now").count() >= 2, "{asked:?}");
    assert!(asked.iter().all(|path| path == "/" || path == "/now"), "nothing else: {asked:?}");
    // A relay that does not answer any more.
    let between = Between::start(&relay, 2);
    let dom = chromium.dom(&between.url(), 6000);
    assert!(dom.contains("No answer since "), "{dom}");
    chromium.picture(&url, "good");

    kafka.kill9();
    for _ in 0..200 {
        emit(&postgres, true, "page", FACT);
    }
    wait_state(&relay, "stalled");
    relay.wait_until("a lag that can be seen", PATIENCE, || {
        status("/lag_seconds").as_f64().is_some_and(|lag| lag > 5.0)
    });
    let dom = chromium.dom(&url, 2000);
    assert!(dom.contains("class=\"bad\"") && dom.contains("blocked partition"), "{dom}");
    chromium.picture(&url, "stalled");

    drop_slots(&postgres);
    wait_state(&relay, "failed");
    let dom = chromium.dom(&url, 2000);
    assert!(dom.contains("exit code 4"), "{dom}");
    chromium.picture(&url, "failed");
}
