//! Hosts on the loopback, with real certificates and real datagrams.

use super::certificates::{AUTHORITY_FILE, HostName, Identity, IdentityFiles, SiteAuthority, write};
use super::link::raw;
use super::record::NetworkSettings;
use super::*;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;
use tidegate_stack::plan::HostOrdinal;

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A site's folder, with its authority and what it made.
struct Ground {
    folder: PathBuf,
    authority: SiteAuthority,
}

impl Ground {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("tidegate-cluster-{}-{name}", std::process::id()));
        drop(std::fs::remove_dir_all(&folder));
        std::fs::create_dir_all(&folder).unwrap();
        let authority = SiteAuthority::new("store-42").unwrap();
        authority.save(&folder).unwrap();
        Self { folder, authority }
    }

    /// A host's configuration with a good certificate, on a free port.
    fn host(&self, host_id: &str) -> SiteConfig {
        self.give(host_id, self.authority.issue(host_id).unwrap());
        self.config(host_id)
    }

    fn give(&self, host_id: &str, (certificate, key): (String, String)) {
        write(&self.file(host_id, "pem"), &certificate, 0o644).unwrap();
        write(&self.file(host_id, "key"), &key, 0o600).unwrap();
    }

    fn file(&self, host_id: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{host_id}.{extension}"))
    }

    fn config(&self, host_id: &str) -> SiteConfig {
        SiteConfig {
            host_id: host_id.to_owned(),
            site: "store-42".to_owned(),
            listen: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), free_port()),
            ca_file: self.folder.join(AUTHORITY_FILE),
            certificate_file: self.file(host_id, "pem"),
            private_key_file: self.file(host_id, "key"),
            hosts: Vec::new(),
            boot: 1,
            known_time: SystemTime::UNIX_EPOCH,
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

fn free_port() -> u16 {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    socket.local_addr().unwrap().port()
}

fn knows(config: &mut SiteConfig, other: &SiteConfig) {
    config.hosts.push(SiteHost {
        host_id: other.host_id.clone(),
        address: other.listen.ip(),
        port: other.listen.port(),
    });
}

fn body(ordinal: u64) -> RecordBody {
    RecordBody {
        ordinal: HostOrdinal::try_from(ordinal).unwrap(),
        addresses: vec![Ipv4Addr::LOCALHOST.into()],
        generations: Vec::new(),
        network: NetworkSettings {
            application_prefix: "172.19.0.0/16".parse().unwrap(),
            shared_prefix: "100.96.0.0/11".parse().unwrap(),
        },
        networks: Vec::new(),
        instances: Vec::new(),
        later: serde_json::Map::new(),
    }
}

async fn start(config: &SiteConfig, ordinal: u64) -> Site {
    let site = Site::start(config.clone()).await.unwrap();
    site.publish(body(ordinal));
    site
}

async fn until(site: &mut Site, what: &str, done: impl Fn(&SiteView) -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !done(&site.view()) {
            // What happens again wakes nobody.
            drop(tokio::time::timeout(Duration::from_millis(200), site.changed()).await);
        }
    });
    if waited.await.is_err() {
        panic!("{what}: {:#?}", site.view());
    }
}

fn names(view: &SiteView) -> Vec<&str> {
    view.records.keys().map(String::as_str).collect()
}

fn faults(view: &SiteView) -> Vec<&CertificateFault> {
    view.events
        .iter()
        .filter_map(|event| match &event.kind {
            SiteEventKind::CertificateRefused { fault, .. } => Some(fault),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn three_hosts_know_each_other_and_hear_of_changes_at_once() {
    let ground = Ground::new("three");
    let (mut a, mut b, mut c) = (ground.host("a"), ground.host("b"), ground.host("c"));
    let all = [a.clone(), b.clone(), c.clone()];
    for config in [&mut a, &mut b, &mut c] {
        // The same list everywhere, with the host itself in it.
        all.iter().for_each(|other| knows(config, other));
    }
    let (mut a, mut b, mut c) = (start(&a, 1).await, start(&b, 2).await, start(&c, 3).await);
    until(&mut a, "a sees all", |view| names(view) == ["b", "c"]).await;
    until(&mut b, "b sees all", |view| names(view) == ["a", "c"]).await;
    until(&mut c, "c sees all", |view| names(view) == ["a", "b"]).await;
    let connected = |view: &SiteView| view.hosts.iter().filter(|host| host.connected).count() == 2;
    until(&mut a, "a is connected to all", connected).await;
    let began = Instant::now();
    let mut changed = body(1);
    changed.addresses.push(Ipv6Addr::LOCALHOST.into());
    a.publish(changed.clone());
    for site in [&mut b, &mut c] {
        until(site, "the change arrives", |view| {
            view.records.get("a").is_some_and(|record| record.body == changed)
        })
        .await;
    }
    println!("a change was known everywhere after {:?}", began.elapsed());
    let view = a.view();
    assert_eq!(view.events_lost, 0);
    assert!(
        view.hosts
            .iter()
            .all(|host| host.rtt.is_some() && host.last_heard.is_some())
    );
    drop(b);
    until(&mut a, "b is withdrawn", |view| names(view) == ["c"]).await;
}

#[tokio::test]
async fn hosts_meet_through_a_third_and_on_either_family() {
    let ground = Ground::new("chain");
    let (mut a, mut b, mut c) = (ground.host("a"), ground.host("b"), ground.host("c"));
    b.listen.set_ip(Ipv6Addr::UNSPECIFIED.into());
    c.listen.set_ip(Ipv6Addr::LOCALHOST.into());
    for (config, address) in [
        (&mut a, IpAddr::V4(Ipv4Addr::LOCALHOST)),
        (&mut c, IpAddr::V6(Ipv6Addr::LOCALHOST)),
    ] {
        config.hosts.push(SiteHost {
            host_id: "b".to_owned(),
            address,
            port: b.listen.port(),
        });
    }
    // b lists a, too, so that both dial at once.
    knows(&mut b, &a);
    let (mut a, mut b, mut c) = (start(&a, 1).await, start(&b, 2).await, start(&c, 3).await);
    until(&mut a, "a sees c", |view| names(view) == ["b", "c"]).await;
    until(&mut c, "c sees a", |view| names(view) == ["a", "b"]).await;
    until(&mut b, "b is connected to both", |view| {
        view.hosts.iter().filter(|host| host.connected).count() == 2
    })
    .await;
    let addresses: Vec<_> = b.view().hosts.iter().map(|host| host.address).collect();
    assert_eq!(
        addresses,
        [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()]
    );
}

#[tokio::test]
async fn a_host_that_lost_its_count_is_believed_again() {
    let ground = Ground::new("count");
    let (a, mut b) = (ground.host("a"), ground.host("b"));
    knows(&mut b, &a);
    b.boot = 7;
    let mut a = start(&a, 1).await;
    let first = start(&b, 2).await;
    until(&mut a, "b is there", |view| names(view) == ["b"]).await;
    drop(first);
    b.boot = 1;
    // The old socket is closed a little later.
    b.listen.set_port(free_port());
    let mut second = start(&b, 3).await;
    until(&mut second, "b counts on", |view| view.boot == 8).await;
    until(&mut a, "b is there again", |view| {
        view.records
            .get("b")
            .is_some_and(|record| record.body.ordinal.get() == 3)
    })
    .await;
}

/// A host dials a good one, which must refuse it for this reason and tell it nothing.
async fn is_refused(ground: &Ground, mut bad: SiteConfig, fault: CertificateFault) {
    let good = ground.host("good");
    knows(&mut bad, &good);
    let mut good = start(&good, 1).await;
    let mut stranger = start(&bad, 66).await;
    until(&mut good, "the stranger is refused", |view| {
        faults(view).contains(&&fault)
    })
    .await;
    until(&mut stranger, "and notices", |view| {
        let refused = |event: &SiteEvent| matches!(event.kind, SiteEventKind::RefusedThere { .. });
        view.events.iter().any(refused) || !faults(view).is_empty()
    })
    .await;
    assert_eq!(faults(&good.view()), [&fault], "no other reason");
    assert!(good.view().records.is_empty());
    assert!(stranger.view().records.is_empty());
}

#[tokio::test]
async fn an_expired_certificate_gets_nothing() {
    let ground = Ground::new("expired");
    let now = SystemTime::now();
    let issued = ground
        .authority
        .issue_for("store-42", "bad", now - 2 * DAY, now - HOUR);
    ground.give("bad", issued.unwrap());
    is_refused(&ground, ground.config("bad"), CertificateFault::Expired).await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_gets_nothing() {
    let ground = Ground::new("foreign");
    let foreign = SiteAuthority::new("store-42").unwrap();
    ground.give("bad", foreign.issue("bad").unwrap());
    is_refused(&ground, ground.config("bad"), CertificateFault::ForeignAuthority).await;
}

#[tokio::test]
async fn a_self_signed_certificate_gets_nothing() {
    let ground = Ground::new("self-signed");
    let mut params = rcgen::CertificateParams::default();
    let name = "tidegate://store-42/bad".try_into().unwrap();
    params.subject_alt_names = vec![rcgen::SanType::URI(name)];
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    ground.give("bad", (certificate, key.serialize_pem()));
    is_refused(&ground, ground.config("bad"), CertificateFault::ForeignAuthority).await;
}

#[tokio::test]
async fn a_certificate_of_another_site_gets_nothing() {
    let ground = Ground::new("other-site");
    let good = ground.host("good");
    let mut site = start(&good, 1).await;
    let fault = CertificateFault::OtherSite {
        site: "store-43".to_owned(),
    };
    let now = SystemTime::now();
    let same_authority = ground
        .authority
        .issue_for("store-43", "bad", now - DAY, now + DAY);
    let own_authority = SiteAuthority::new("store-43").unwrap().issue("bad");
    for (times, issued) in [(1, same_authority), (2, own_authority)] {
        ground.give("bad", issued.unwrap());
        let identity = read(&ground, "store-43", "bad");
        assert_eq!(raw::told(good.listen, &identity, true).await, b"");
        until(&mut site, "it is told apart", |view| {
            faults(view) == [&fault] && view.events.back().is_some_and(|event| event.times == times)
        })
        .await;
    }
    // Two such hosts refuse each other, and the one that is dialled hears of it.
    let mut stranger = ground.config("bad");
    stranger.site = "store-43".to_owned();
    knows(&mut stranger, &good);
    let mut stranger = start(&stranger, 66).await;
    until(&mut stranger, "the good host is refused", |view| {
        let site = "store-42".to_owned();
        faults(view) == [&CertificateFault::OtherSite { site }]
    })
    .await;
    until(&mut site, "and hears of it", |view| {
        let refused = |event: &SiteEvent| matches!(event.kind, SiteEventKind::RefusedThere { .. });
        view.events.iter().any(refused)
    })
    .await;
    assert!(site.view().records.is_empty());
}

#[tokio::test]
async fn a_certificate_with_the_own_name_gets_nothing() {
    let ground = Ground::new("own-name");
    let good = ground.host("good");
    let mut double = ground.host("good");
    double.hosts = vec![SiteHost {
        host_id: "other".to_owned(),
        address: good.listen.ip(),
        port: good.listen.port(),
    }];
    let good = start(&good, 1).await;
    let mut double = start(&double, 1).await;
    until(&mut double, "the double is refused", |view| {
        faults(view).contains(&&CertificateFault::OwnName)
    })
    .await;
    assert!(good.view().records.is_empty());
}

#[tokio::test]
async fn a_host_that_answers_in_place_of_another_gets_nothing() {
    let ground = Ground::new("other-host");
    let (mut a, impostor) = (ground.host("a"), ground.host("impostor"));
    a.hosts = vec![SiteHost {
        host_id: "b".to_owned(),
        address: impostor.listen.ip(),
        port: impostor.listen.port(),
    }];
    let impostor = start(&impostor, 2).await;
    let mut a = start(&a, 1).await;
    let fault = CertificateFault::OtherHost {
        host_id: "impostor".to_owned(),
    };
    until(&mut a, "the impostor is refused", |view| {
        faults(view).contains(&&fault)
    })
    .await;
    assert!(a.view().records.is_empty());
    assert!(impostor.view().records.is_empty());
    let status = a.view().hosts.first().cloned().unwrap();
    assert!(status.problem.unwrap().contains("impostor"));
}

#[tokio::test]
async fn nobody_without_a_certificate_is_told_anything() {
    let ground = Ground::new("missing");
    let good = ground.host("good");
    let mut site = start(&good, 1).await;
    ground.host("nobody");
    let identity = read(&ground, "store-42", "nobody");
    assert_eq!(raw::told(good.listen, &identity, false).await, b"");
    // With one it would have been told something.
    assert_ne!(raw::told(good.listen, &identity, true).await, b"");
    until(&mut site, "it is told apart", |view| {
        faults(view).contains(&&CertificateFault::Missing)
    })
    .await;
}

#[tokio::test]
async fn a_host_that_says_what_cannot_be_loses_its_link() {
    let ground = Ground::new("illegal");
    let good = ground.host("good");
    let mut site = start(&good, 1).await;
    ground.host("liar");
    let identity = read(&ground, "store-42", "liar");
    let frames: [&[u8]; 3] = [&[0xff; 8], b"\0\0\0\x02{}", b"\0\0\0\x13{\"want\":[\"no host\"]}"];
    for frame in frames {
        raw::say(good.listen, &identity, frame).await;
    }
    until(&mut site, "each is told", |view| {
        let illegal = |event: &&SiteEvent| matches!(event.kind, SiteEventKind::IllegalMessage { .. });
        view.events.iter().filter(illegal).count() == frames.len()
    })
    .await;
}

fn read(ground: &Ground, site: &str, host_id: &str) -> Arc<Identity> {
    let config = ground.config(host_id);
    let files = IdentityFiles {
        authority: config.ca_file,
        certificate: config.certificate_file,
        private_key: config.private_key_file,
    };
    let name = HostName {
        site: site.to_owned(),
        host_id: config.host_id,
    };
    let clock = Clock::new(SystemTime::now, SystemTime::UNIX_EPOCH);
    Arc::new(Identity::read(&files, name, clock).unwrap())
}

/// What a machine without a battery takes for the time.
fn clock_of_1970() -> SystemTime {
    SystemTime::UNIX_EPOCH + HOUR
}

#[tokio::test]
async fn a_host_whose_clock_says_1970_is_connected_at_once() {
    let ground = Ground::new("1970");
    let now = SystemTime::now();
    let (a, mut b) = (ground.host("a"), ground.host("b"));
    // The other's certificate is younger than its own.
    ground.give(
        "a",
        ground
            .authority
            .issue_for("store-42", "a", now - HOUR, now + DAY)
            .unwrap(),
    );
    ground.give(
        "b",
        ground
            .authority
            .issue_for("store-42", "b", now - DAY, now + DAY)
            .unwrap(),
    );
    knows(&mut b, &a);
    let mut a = start(&a, 1).await;
    let mut b = Site::start_by(b, clock_of_1970).await.unwrap();
    b.publish(body(2));
    until(&mut b, "it sees the other", |view| names(view) == ["a"]).await;
    until(&mut a, "and is seen", |view| names(view) == ["b"]).await;
}

#[tokio::test]
async fn a_clock_of_1970_does_not_make_an_expired_certificate_good() {
    let ground = Ground::new("1970-expired");
    let now = SystemTime::now();
    let (a, mut b) = (ground.host("a"), ground.host("b"));
    ground.give(
        "a",
        ground
            .authority
            .issue_for("store-42", "a", now - 9 * DAY, now - 2 * DAY)
            .unwrap(),
    );
    knows(&mut b, &a);
    b.known_time = now - DAY;
    let a = start(&a, 1).await;
    let mut b = Site::start_by(b, clock_of_1970).await.unwrap();
    until(&mut b, "it is refused", |view| {
        faults(view).contains(&&CertificateFault::Expired)
    })
    .await;
    assert!(a.view().records.is_empty());
}

#[tokio::test]
async fn renewed_files_are_taken_without_a_restart() {
    let ground = Ground::new("renewed");
    let now = SystemTime::now();
    let (mut a, b) = (ground.host("a"), ground.host("b"));
    ground.give(
        "a",
        ground
            .authority
            .issue_for("store-42", "a", now - 2 * DAY, now - DAY)
            .unwrap(),
    );
    knows(&mut a, &b);
    let mut b = start(&b, 2).await;
    let mut a = start(&a, 1).await;
    until(&mut b, "a is refused", |view| !faults(view).is_empty()).await;
    write(&ground.file("a", "pem"), "not a certificate", 0o644).unwrap();
    until(&mut a, "what is no use is told", |view| {
        let unusable = |event: &SiteEvent| matches!(event.kind, SiteEventKind::CertificateUnusable { .. });
        view.events.iter().any(unusable)
    })
    .await;
    ground.give("a", ground.authority.issue("a").unwrap());
    until(&mut a, "they are connected", |view| names(view) == ["b"]).await;
}

#[tokio::test]
async fn what_keeps_a_site_from_starting_is_told_with_its_file() {
    let ground = Ground::new("start");
    let good = ground.host("a");
    ground.host("b");
    let taken = UdpSocket::bind(good.listen).unwrap();
    let error = Site::start(good.clone()).await.unwrap_err();
    assert!(format!("{error:#}").contains("cluster.control-port"), "{error:#}");
    drop(taken);
    let with = |change: &dyn Fn(&mut SiteConfig)| {
        let mut config = good.clone();
        change(&mut config);
        config
    };
    let cases = [
        (
            with(&|config| config.ca_file = "/nowhere/ca.pem".into()),
            "cluster.ca-file",
        ),
        (
            with(&|config| config.ca_file = ground.file("a", "key")),
            "a.key holds no certificate",
        ),
        (
            with(&|config| config.certificate_file = ground.file("b", "pem")),
            "is for host b of site store-42",
        ),
        (
            with(&|config| config.site = "store-43".to_owned()),
            "`URI:tidegate://store-43/a`",
        ),
        (
            with(&|config| config.private_key_file = ground.file("a", "pem")),
            "cluster.private-key-file",
        ),
        (
            with(&|config| config.private_key_file = ground.file("b", "key")),
            "don't fit",
        ),
    ];
    for (config, told) in cases {
        let error = Site::start(config).await.unwrap_err();
        assert!(format!("{error:#}").contains(told), "{error:#}");
    }
}

#[test]
fn an_authority_goes_on_after_it_was_saved_and_loaded() {
    let ground = Ground::new("authority");
    let loaded = SiteAuthority::load("store-42", &ground.folder).unwrap();
    assert_eq!(loaded.certificate(), ground.authority.certificate());
    ground.give("a", loaded.issue("a").unwrap());
    let key = ground.folder.join(super::certificates::AUTHORITY_KEY_FILE);
    assert_eq!(crate::agent::keys::readable_by_others(&key).unwrap(), None);
    drop(read(&ground, "store-42", "a"));
    let error = SiteAuthority::load("store-42", Path::new("/nowhere"))
        .err()
        .unwrap();
    assert!(error.to_string().contains("/nowhere/site-ca.pem"), "{error:#}");
}

/// The commands of the documentation, as they stand there.
fn documented_commands() -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let text = std::fs::read_to_string(file).unwrap();
    let section = text
        .split("\n## ")
        .find(|section| section.starts_with("Certificates of a site"));
    section
        .unwrap()
        .split("```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn certificates_made_as_the_documentation_says_are_good() {
    if std::process::Command::new("openssl")
        .arg("version")
        .output()
        .is_err()
    {
        println!("skipped: openssl isn't installed");
        return;
    }
    let ground = Ground::new("openssl");
    let [authority, host] = documented_commands().try_into().unwrap();
    for commands in [authority, host.clone(), host.replace("edge-1", "edge-2")] {
        let made = std::process::Command::new("sh")
            .args(["-ec", &commands])
            .current_dir(&ground.folder)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    let (one, mut other) = (ground.config("edge-1"), ground.config("edge-2"));
    knows(&mut other, &one);
    let _one = start(&one, 1).await;
    let mut other = start(&other, 2).await;
    until(&mut other, "they are connected", |view| names(view) == ["edge-1"]).await;
}
