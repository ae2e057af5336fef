//! Where the other programs come from: fetched once, kept under `target/peers`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::run;

/// The folder for everything that isn't ours.
pub(crate) fn cache() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    folder
        .canonicalize()
        .with_context(|| format!("finding {}", folder.display()))
}

/// The newest wireguard-go that Debian has: the stable release's is years old and a third as fast.
///
/// A configuration of apt of its own, with the machine's own mirror but the distribution `sid`, downloads the package
/// without installing anything.
pub(crate) fn wireguard_go() -> Result<PathBuf> {
    let cache = cache()?;
    let program = cache.join("wireguard-go/usr/bin/wireguard-go");
    if program.exists() {
        return Ok(program);
    }
    let apt = cache.join("apt");
    for folder in ["lists/partial", "archives/partial"] {
        fs::create_dir_all(apt.join(folder)).context("making apt's folders")?;
    }
    let mirror = debian_mirror()?;
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    fs::write(
        apt.join("sources.list"),
        format!("deb [signed-by={keyring}] {mirror} sid main\n"),
    )?;
    let status = apt.join("status");
    fs::write(&status, "")?;

    let at = |name: &str| apt.join(name).display().to_string();
    let options = [
        format!("Dir::Etc::SourceList={}", at("sources.list")),
        "Dir::Etc::SourceParts=/dev/null".to_owned(),
        "Dir::Etc::Preferences=/dev/null".to_owned(),
        "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
        format!("Dir::State::Lists={}", at("lists")),
        format!("Dir::State::Status={}", status.display()),
        format!("Dir::Cache={}", at("")),
        format!("Dir::Cache::Archives={}", at("archives")),
        "APT::Sandbox::User=root".to_owned(),
    ];
    // `env --chdir`: `download` puts the package into the current folder.
    let folder = apt.display().to_string();
    let apt_get = |verb: &[&str]| -> Result<String> {
        let mut words = vec!["env", "--chdir", &folder, "apt-get", "-q"];
        for option in &options {
            words.extend(["-o", option]);
        }
        words.extend(verb);
        run(&words)
    };
    apt_get(&["update"]).context("reading Debian sid's list of packages")?;
    apt_get(&["download", "wireguard-go"])?;

    let package = package_in(&apt)?.display().to_string();
    let unpacked = cache.join("wireguard-go");
    run(&["dpkg-deb", "-x", &package, &unpacked.display().to_string()])?;
    let version = run(&["dpkg-deb", "-f", &package, "Version"])?;
    fs::write(unpacked.join("version"), version)?;
    Ok(program)
}

/// Mullvad's gotatun.
pub(crate) fn gotatun() -> Result<PathBuf> {
    crate_binary("gotatun-cli@0.10.2", "gotatun")
}

/// Cloudflare's boringtun, the program of the crate that we seal and open with.
pub(crate) fn boringtun() -> Result<PathBuf> {
    crate_binary("boringtun-cli@0.7.1", "boringtun-cli")
}

/// A program of a crate, built from its registry by cargo.
fn crate_binary(specification: &str, name: &str) -> Result<PathBuf> {
    let cache = cache()?;
    let program = cache.join("bin").join(name);
    if !program.exists() {
        let (root, build) = (
            cache.display().to_string(),
            cache.join("build").display().to_string(),
        );
        run(&[
            "cargo",
            "install",
            "--locked",
            specification,
            "--root",
            &root,
            "--target-dir",
            &build,
        ])?;
    }
    Ok(program)
}

/// What was measured: the version of wireguard-go's package, and what the others say of themselves.
pub(crate) fn versions() -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    let Ok(cache) = cache() else { return versions };
    if let Ok(version) = fs::read_to_string(cache.join("wireguard-go/version")) {
        versions.insert("wireguard-go".to_owned(), version.trim().to_owned());
    }
    for (name, program) in [("gotatun", "gotatun"), ("boringtun", "boringtun-cli")] {
        let program = cache.join("bin").join(program).display().to_string();
        if let Ok(version) = run(&[program.as_str(), "--version"]) {
            versions.insert(name.to_owned(), version.trim().to_owned());
        }
    }
    versions
}

fn package_in(folder: &Path) -> Result<PathBuf> {
    let listing = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    let mut packages: Vec<PathBuf> = listing
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    packages.sort();
    packages
        .pop()
        .with_context(|| format!("apt-get download left no package in {}", folder.display()))
}

/// The mirror that this machine takes Debian from: the first one in its sources that isn't the security archive.
fn debian_mirror() -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(listing) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(listing.filter_map(|entry| entry.ok().map(|entry| entry.path())));
    }
    files.sort();
    let text: Vec<String> = files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .collect();
    let mirror = text
        .iter()
        .flat_map(|text| text.lines())
        .filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"))
        .flat_map(str::split_whitespace)
        .find(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian"));
    Ok(mirror
        .context("no Debian mirror in /etc/apt/sources.list or /etc/apt/sources.list.d")?
        .to_owned())
}
