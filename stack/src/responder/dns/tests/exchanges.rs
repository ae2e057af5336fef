//! Questions and their whole answers, one a line.

use super::exchange;
use super::site::{BLUE, HISTORIAN, SHOP};
use crate::plan::PortId;

const NODATA: &str = "NOERROR aa | ! internal. SOA …";
const NXDOMAIN: &str = "NXDOMAIN aa | ! internal. SOA …";

#[rustfmt::skip]
const EXCHANGES: &[(PortId, &str, &str)] = &[
    // Services and instances.
    (SHOP, "web.shop.internal A", "NOERROR aa | = web.shop.internal. A 172.19.1.2 | = web.shop.internal. A 172.19.2.2 | = web.shop.internal. A 172.19.1.9"),
    (SHOP, "web.shop.internal AAAA", "NOERROR aa | = web.shop.internal. AAAA fd00:aaaa:bbbb:1::1:2 | = web.shop.internal. AAAA fd00:aaaa:bbbb:1::2:2 | = web.shop.internal. AAAA fd00:aaaa:bbbb:1::1:9"),
    (SHOP, "db.shop.internal A", "NOERROR aa | = db.shop.internal. A 172.19.1.3 | = db.shop.internal. A 172.19.2.4"),
    (SHOP, "web-1.shop.internal A", "NOERROR aa | = web-1.shop.internal. A 172.19.1.2"),
    (SHOP, "web-10.shop.internal AAAA", "NOERROR aa | = web-10.shop.internal. AAAA fd00:aaaa:bbbb:1::1:9"),
    (SHOP, "db-2.shop.internal A", "NOERROR aa | = db-2.shop.internal. A 172.19.2.4"),
    // With the tenant.
    (SHOP, "db.shop.acme.internal A", "NOERROR aa | = db.shop.acme.internal. A 172.19.1.3 | = db.shop.acme.internal. A 172.19.2.4"),
    (SHOP, "web-2.shop.acme.internal A", "NOERROR aa | = web-2.shop.acme.internal. A 172.19.2.2"),
    (SHOP, "db.historian.acme.internal A", "NOERROR aa | = db.historian.acme.internal. A 100.96.64.76 | = db.historian.acme.internal. A 100.96.64.140"),
    // Other applications: by the addresses of the shared network; one's own by those of one's own.
    (SHOP, "db.historian.internal A", "NOERROR aa | = db.historian.internal. A 100.96.64.76 | = db.historian.internal. A 100.96.64.140"),
    (SHOP, "db-1.historian.internal AAAA", "NOERROR aa | = db-1.historian.internal. AAAA fd00:aaaa:bbbb:5::1:c"),
    (HISTORIAN, "db.historian.internal A", "NOERROR aa | = db.historian.internal. A 172.19.1.12 | = db.historian.internal. A 172.19.2.12"),
    (HISTORIAN, "db.shop.internal A", "NOERROR aa | = db.shop.internal. A 100.96.64.67 | = db.shop.internal. A 100.96.64.132"),
    (HISTORIAN, "web-1.shop.internal A", "NOERROR aa | = web-1.shop.internal. A 100.96.64.66"),
    (HISTORIAN, "many.shop.internal A", NXDOMAIN),
    (BLUE, "web.blue.internal A", "NOERROR aa | = web.blue.internal. A 172.19.1.2"),
    (BLUE, "db.historian.internal A", NXDOMAIN),
    // The case of the question comes back, and doesn't matter.
    (SHOP, "DB-1.sHoP.InTeRnAl A", "NOERROR aa | = DB-1.sHoP.InTeRnAl. A 172.19.1.3"),
    (SHOP, "nObOdY.ShOp.InTeRnAl A", "NXDOMAIN aa | ! InTeRnAl. SOA …"),
    // Readiness.
    (SHOP, "web-3.shop.internal A", NODATA),
    (SHOP, "web-3.shop.internal AAAA", NODATA),
    (SHOP, "idle.shop.internal A", NODATA),
    (SHOP, "idle.shop.internal ANY", NODATA),
    (SHOP, "_http._tcp.idle.shop.internal SRV", NODATA),
    (SHOP, "gone.shop.internal A", NODATA),
    // Neither exists, nor does what is below or beside.
    (SHOP, "nobody.shop.internal A", NXDOMAIN),
    (SHOP, "web-4.shop.internal A", NXDOMAIN),
    (SHOP, "a.web.shop.internal A", NXDOMAIN),
    (SHOP, "shop.nobody.internal A", NXDOMAIN),
    (SHOP, "web.shop.nobody.internal A", NXDOMAIN),
    (SHOP, "db.historian.shop.internal A", NXDOMAIN),
    (SHOP, "web.internal A", NXDOMAIN),
    // Types that aren't there.
    (SHOP, "web.shop.internal MX", NODATA),
    (SHOP, "web.shop.internal CNAME", NODATA),
    (SHOP, "web.shop.internal HTTPS", NODATA),
    (SHOP, "web.shop.internal TYPE65280", NODATA),
    (SHOP, "web.shop.internal NS", NODATA),
    (SHOP, "web.shop.internal SOA", NODATA),
    (SHOP, "web.shop.internal SRV", NODATA),
    (SHOP, "db.shop.internal TXT", NODATA),
    // Empty non-terminals.
    (SHOP, "shop.internal A", NODATA),
    (SHOP, "acme.internal AAAA", NODATA),
    (SHOP, "shop.acme.internal A", NODATA),
    (SHOP, "historian.internal A", NODATA),
    (SHOP, "_tcp.web.shop.internal SRV", NODATA),
    (SHOP, "_udp.web.shop.internal A", NODATA),
    (SHOP, "shop.internal ANY", NODATA),
    (SHOP, "19.172.in-addr.arpa A", "NOERROR aa | ! 19.172.in-addr.arpa. SOA …"),
    (SHOP, "1.19.172.in-addr.arpa PTR", "NOERROR aa | ! 19.172.in-addr.arpa. SOA …"),
    // The apex.
    (SHOP, "internal SOA", "NOERROR aa | = internal. SOA …"),
    (SHOP, "internal NS", "NOERROR aa | = internal. NS ns.internal. | + ns.internal. A 172.19.0.1 | + ns.internal. AAAA fd00:aaaa:bbbb:1::1"),
    (SHOP, "internal A", NODATA),
    (SHOP, "internal ANY", "NOERROR aa | = internal. HINFO RFC8482 "),
    (SHOP, "ns.internal A", "NOERROR aa | = ns.internal. A 172.19.0.1"),
    (BLUE, "ns.internal AAAA", "NOERROR aa | = ns.internal. AAAA fd00:aaaa:bbbb:3::1"),
    (SHOP, "19.172.in-addr.arpa SOA", "NOERROR aa | = 19.172.in-addr.arpa. SOA …"),
    (SHOP, "19.172.in-addr.arpa NS", "NOERROR aa | = 19.172.in-addr.arpa. NS ns.internal. | + ns.internal. A 172.19.0.1 | + ns.internal. AAAA fd00:aaaa:bbbb:1::1"),
    (SHOP, "64.96.100.in-addr.arpa SOA", "NOERROR aa | = 64.96.100.in-addr.arpa. SOA …"),
    (SHOP, "127.96.100.in-addr.arpa SOA", "NOERROR aa | = 127.96.100.in-addr.arpa. SOA …"),
    // Addresses.
    (SHOP, "2.1.19.172.in-addr.arpa PTR", "NOERROR aa | = 2.1.19.172.in-addr.arpa. PTR web-1.shop.internal."),
    (SHOP, "3.2.19.172.in-addr.arpa PTR", "NOERROR aa | = 3.2.19.172.in-addr.arpa. PTR web-3.shop.internal."),
    (SHOP, "1.0.19.172.in-addr.arpa PTR", "NOERROR aa | = 1.0.19.172.in-addr.arpa. PTR ns.internal."),
    (SHOP, "66.64.96.100.in-addr.arpa ANY", "NOERROR aa | = 66.64.96.100.in-addr.arpa. HINFO RFC8482 "),
    (SHOP, "2.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.b.b.b.b.a.a.a.a.0.0.d.f.ip6.arpa PTR", "NOERROR aa | = 2.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.b.b.b.b.a.a.a.a.0.0.d.f.ip6.arpa. PTR web-1.shop.internal."),
    (SHOP, "c.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.5.0.0.0.b.b.b.b.a.a.a.a.0.0.D.F.IP6.ARPA PTR", "NOERROR aa | = c.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.5.0.0.0.b.b.b.b.a.a.a.a.0.0.D.F.IP6.ARPA. PTR db-1.historian.internal."),
    (SHOP, "9.9.19.172.in-addr.arpa PTR", "NXDOMAIN aa | ! 19.172.in-addr.arpa. SOA …"),
    (SHOP, "1.2.1.19.172.in-addr.arpa PTR", "NXDOMAIN aa | ! 19.172.in-addr.arpa. SOA …"),
    (SHOP, "9.64.96.100.in-addr.arpa PTR", "NXDOMAIN aa | ! 64.96.100.in-addr.arpa. SOA …"),
    (SHOP, "f.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.b.b.b.b.a.a.a.a.0.0.d.f.ip6.arpa PTR", "NXDOMAIN aa | ! 1.0.0.0.b.b.b.b.a.a.a.a.0.0.d.f.ip6.arpa. SOA …"),
    // SRV and TXT.
    (SHOP, "_http._tcp.web.shop.internal SRV", "NOERROR aa | = _http._tcp.web.shop.internal. SRV 0 0 80 web-1.shop.internal. | = _http._tcp.web.shop.internal. SRV 0 0 80 web-2.shop.internal. | = _http._tcp.web.shop.internal. SRV 0 0 80 web-10.shop.internal. | + web-1.shop.internal. A 172.19.1.2 | + web-1.shop.internal. AAAA fd00:aaaa:bbbb:1::1:2 | + web-2.shop.internal. A 172.19.2.2 | + web-2.shop.internal. AAAA fd00:aaaa:bbbb:1::2:2 | + web-10.shop.internal. A 172.19.1.9 | + web-10.shop.internal. AAAA fd00:aaaa:bbbb:1::1:9"),
    (HISTORIAN, "_stats._udp.web.shop.acme.internal SRV", "NOERROR aa | = _stats._udp.web.shop.acme.internal. SRV 0 0 8125 web-1.shop.acme.internal. | = _stats._udp.web.shop.acme.internal. SRV 0 0 8125 web-2.shop.acme.internal. | = _stats._udp.web.shop.acme.internal. SRV 0 0 8125 web-10.shop.acme.internal. | + web-1.shop.acme.internal. A 100.96.64.66 | + web-1.shop.acme.internal. AAAA fd00:aaaa:bbbb:5::1:2 | + web-2.shop.acme.internal. A 100.96.64.130 | + web-2.shop.acme.internal. AAAA fd00:aaaa:bbbb:5::2:2 | + web-10.shop.acme.internal. A 100.96.64.73 | + web-10.shop.acme.internal. AAAA fd00:aaaa:bbbb:5::1:9"),
    (SHOP, "_http._udp.web.shop.internal SRV", NXDOMAIN),
    (SHOP, "web.shop.internal TXT", "NOERROR aa | = web.shop.internal. TXT \"\" | = web.shop.internal. TXT \"build=17\""),
    (SHOP, "_acme-challenge.web.shop.internal TXT", "NOERROR aa | = _acme-challenge.web.shop.internal. TXT \"token-1\" | = _acme-challenge.web.shop.internal. TXT \"token-2\""),
    (HISTORIAN, "_acme-challenge.web.shop.acme.internal TXT", "NOERROR aa | = _acme-challenge.web.shop.acme.internal. TXT \"token-1\" | = _acme-challenge.web.shop.acme.internal. TXT \"token-2\""),
    (SHOP, "_acme-challenge.db.shop.internal TXT", NXDOMAIN),
    (SHOP, "_acme-challenge.web.shop.internal A", NODATA),
    // ANY.
    (SHOP, "web.shop.internal ANY", "NOERROR aa | = web.shop.internal. HINFO RFC8482 "),
    (SHOP, "nobody.shop.internal ANY", NXDOMAIN),
    // Flags.
    (SHOP, "db-1.shop.internal A +rd", "NOERROR aa rd | = db-1.shop.internal. A 172.19.1.3"),
    (SHOP, "db-1.shop.internal A +rd +ad +cd +z", "NOERROR aa rd cd | = db-1.shop.internal. A 172.19.1.3"),
    // EDNS.
    (SHOP, "db-1.shop.internal A +edns=4096", "NOERROR aa edns=1232 | = db-1.shop.internal. A 172.19.1.3"),
    (SHOP, "db-1.shop.internal A +edns=0", "NOERROR aa edns=1232 | = db-1.shop.internal. A 172.19.1.3"),
    (SHOP, "db-1.shop.internal A +edns=1232 +do", "NOERROR aa edns=1232 do | = db-1.shop.internal. A 172.19.1.3"),
    (SHOP, "db-1.shop.internal A +edns=1232 +cookie", "NOERROR aa edns=1232 | = db-1.shop.internal. A 172.19.1.3"),
    (SHOP, "nobody.shop.internal A +edns=1232", "NXDOMAIN aa edns=1232 | ! internal. SOA …"),
    (SHOP, "db-1.shop.internal A +edns=1232 +version=1", "BADVERS edns=1232"),
    (SHOP, "db-1.shop.internal A +edns=1232 +edns=1232", "FORMERR headeronly"),
    // The world beyond.
    (SHOP, "www.example.test A", "forward: REFUSED"),
    (SHOP, "web.shop A +rd +edns=1232", "forward: REFUSED rd edns=1232"),
    (SHOP, ". NS", "forward: REFUSED"),
    (SHOP, "arpa NS", "forward: REFUSED"),
    (SHOP, "172.in-addr.arpa SOA", "forward: REFUSED"),
    (SHOP, "1.128.96.100.in-addr.arpa PTR", "forward: REFUSED"),
    (SHOP, "2.0.0.0.ip6.arpa PTR", "forward: REFUSED"),
    (SHOP, "web.notinternal A", "forward: REFUSED"),
    // What isn't answered here.
    (SHOP, "db-1.shop.internal A +class=3", "REFUSED"),
    (SHOP, "db-1.shop.internal A +class=255", "REFUSED"),
    (SHOP, "internal AXFR", "REFUSED"),
    (SHOP, "internal IXFR", "REFUSED"),
    (SHOP, "db-1.shop.internal A +opcode=2", "NOTIMP headeronly"),
    (SHOP, "db-1.shop.internal A +opcode=5", "NOTIMP headeronly"),
    (SHOP, "db-1.shop.internal A +opcode=15 +rd", "NOTIMP rd headeronly"),
    (SHOP, "db-1.shop.internal A +questions=0", "FORMERR headeronly"),
    (SHOP, "db-1.shop.internal A +questions=2", "FORMERR headeronly"),
    (SHOP, "db-1.shop.internal A +answers=1", "FORMERR headeronly"),
    (SHOP, "db-1.shop.internal A +authorities=1", "FORMERR headeronly"),
    // What stands behind the message is nobody's.
    (SHOP, "db-1.shop.internal A +junk", "NOERROR aa | = db-1.shop.internal. A 172.19.1.3"),
];

#[test]
fn every_exchange_is_as_written() {
    assert!(EXCHANGES.len() >= 60);
    let wrong: Vec<String> = EXCHANGES
        .iter()
        .map(|(port, asked, expected)| (asked, exchange(*port, asked), expected))
        .filter(|(_, told, expected)| told != *expected)
        .map(|(asked, told, expected)| format!("{asked}\n  told     {told}\n  expected {expected}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
