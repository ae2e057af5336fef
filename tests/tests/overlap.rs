//! A LAN with addresses of the networks: it is told, and the networks move where the document says so.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tidegate_tests::Lab;

/// A site whose LAN lies in the prefix that application networks have by default.
fn topology(on_overlap: &str) -> String {
    let host = |ordinal: u8| {
        format!(
            "  h{ordinal}: {{ ordinal: {ordinal}, interfaces: [ {{ segment: lan, addresses: [172.19.5.1{ordinal}] }} ], \
             document: {{ network: {{ on-overlap: {on_overlap} }} }} }}\n"
        )
    };
    format!(
        "segments: {{ lan: {{ ipv4: 172.19.5.0/24 }} }}\nhosts:\n{}{}applications: [ shop.yaml ]\ninstances:\n  \
         - {{ application: shop, service: web, host: h1 }}\n  - {{ application: shop, service: db, host: h2 }}\n",
        host(1),
        host(2)
    )
}

const SHOP: &str = "name: shop\nservices: [ { name: web }, { name: db } ]\n";

fn application_prefix(lab: &Lab, host: &str) -> Result<String> {
    let list = lab.tidegate(host, &["show", "networks"])?;
    let prefix = list.pointer("/networks/0/ipv4-prefix").and_then(Value::as_str);
    Ok(prefix.with_context(|| format!("no prefix: {list}"))?.to_owned())
}

/// What `doctor` warns of that is about a prefix and a LAN.
fn warnings(lab: &Lab, host: &str) -> Result<Vec<String>> {
    let list = lab.tidegate(host, &["doctor"])?;
    let findings = list
        .get("findings")
        .and_then(Value::as_array)
        .context("findings")?;
    let texts = findings
        .iter()
        .filter_map(|finding| finding.get("text").and_then(Value::as_str));
    Ok(texts
        .filter(|text| text.contains("the LAN "))
        .map(str::to_owned)
        .collect())
}

#[test]
fn the_networks_of_a_site_move_out_of_its_lan() -> Result<()> {
    let Some(lab) = Lab::up("tgoverlap", &topology("renumber"), &[("shop.yaml", SHOP)])? else {
        return Ok(());
    };
    for host in ["h1", "h2"] {
        let prefix = application_prefix(&lab, host)?;
        ensure!(prefix == "172.16.0.0/16", "{host} has {prefix}");
        let warned = warnings(&lab, host)?;
        ensure!(warned.is_empty(), "{warned:?}");
    }
    let told = lab.run("shop-web-1", &["getent", "ahostsv4", "db"])?;
    ensure!(told.starts_with("172.16.2.2 "), "{told}");
    lab.run("shop-web-1", &["ping", "-c", "1", "-W", "5", "db"])?;
    lab.close()
}

#[test]
fn an_overlap_is_told_where_nothing_else_is_wanted() -> Result<()> {
    let Some(lab) = Lab::up("tgoverlap", &topology("report"), &[("shop.yaml", SHOP)])? else {
        return Ok(());
    };
    for host in ["h1", "h2"] {
        let prefix = application_prefix(&lab, host)?;
        ensure!(prefix == "172.19.0.0/16", "{host} has {prefix}");
        let warned = warnings(&lab, host)?;
        let expected =
            "`network.application-prefix` 172.19.0.0/16 and the LAN 172.19.5.0/24 of this host overlap";
        ensure!(
            warned.len() == 1 && warned.iter().all(|text| text.starts_with(expected)),
            "{warned:?}"
        );
    }
    lab.close()
}
