//! The drawing as SVG 1.1: one file without scripts or outside references, to be looked at in any browser.

use super::layout::{self, Arrow, Card, Drawing, HEADER, Hub, Node, label_width};
use crate::agent::api::Graph;

/// Of shared networks, one after the other; strong enough on white.
const COLOURS: [&str; 6] = ["#7c3aed", "#0e7490", "#b45309", "#be185d", "#4d7c0f", "#1d4ed8"];
/// Of applications' own edges.
const INK: &str = "#334155";

const STYLE: &str = "text{font-family:system-ui,-apple-system,'Segoe UI',sans-serif;fill:#0f172a}\
.title{font-size:20px;font-weight:600}.hint{font-size:12px;fill:#64748b}\
.application{font-size:14px;font-weight:600}.tenant{font-weight:400;fill:#64748b}\
.service{font-size:13px;font-weight:600}.note{font-size:11px;fill:#64748b}.label{font-size:11px}\
.hub{font-size:12px;font-weight:600;fill:#fff}";

/// The graph as a drawing.
pub(super) fn render(graph: &Graph) -> String {
    let drawing = layout::place(graph);
    let (width, height) = (drawing.width.ceil(), drawing.height.ceil());
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\" aria-label=\"Who may talk to whom\">\n<style>{STYLE}</style>\n<defs>\n"
    );
    for (number, colour) in std::iter::once(INK).chain(COLOURS).enumerate() {
        svg.push_str(&format!(
            "<marker id=\"head-{number}\" viewBox=\"0 0 8 8\" refX=\"7.5\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" \
             orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" fill=\"{colour}\"/></marker>\n"
        ));
    }
    svg.push_str("</defs>\n<rect width=\"100%\" height=\"100%\" fill=\"#f8fafc\"/>\n");
    svg.push_str("<text class=\"title\" x=\"40\" y=\"52\">Who may talk to whom</text>\n");
    svg.push_str(
        "<text class=\"hint\" x=\"40\" y=\"76\">Members of a network reach each other; a service with a lock only as its \
         arrows say. Everything else is denied.</text>\n",
    );
    threads(&mut svg, &drawing);
    for card in &drawing.cards {
        draw_card(&mut svg, card);
    }
    for (number, hub) in drawing.hubs.iter().enumerate() {
        draw_hub(&mut svg, number, hub);
    }
    for arrow in &drawing.arrows {
        draw_curve(&mut svg, arrow);
    }
    for arrow in &drawing.arrows {
        draw_label(&mut svg, arrow);
    }
    svg.push_str("</svg>\n");
    svg
}

fn colour(hub: usize) -> &'static str {
    COLOURS.get(hub % COLOURS.len()).copied().unwrap_or(INK)
}

/// From shared networks to the cards that they join, behind everything.
fn threads(svg: &mut String, drawing: &Drawing<'_>) {
    for (number, hub) in drawing.hubs.iter().enumerate() {
        let (to_x, _) = hub.place.middle();
        for card in hub.members.iter().filter_map(|member| drawing.cards.get(*member)) {
            let (x, _) = card.place.middle();
            let (y, to_y) = (card.place.bottom(), hub.place.y);
            let half = (y + to_y) / 2.0;
            svg.push_str(&format!(
                "<path d=\"M{x:.0} {y:.0}C{x:.0} {half:.0} {to_x:.0} {half:.0} {to_x:.0} {to_y:.0}\" fill=\"none\" \
                 stroke=\"{}\" stroke-width=\"3\" stroke-opacity=\".35\"/>\n",
                colour(number)
            ));
        }
    }
}

fn draw_card(svg: &mut String, card: &Card<'_>) {
    let place = card.place;
    svg.push_str(&format!(
        "<rect x=\"{:.0}\" y=\"{:.0}\" width=\"{:.0}\" height=\"{:.0}\" rx=\"12\" fill=\"#fff\" stroke=\"#cbd5e1\"/>\n",
        place.x, place.y, place.width, place.height
    ));
    let (tenant, name) = card.name.split_once('/').unwrap_or(("", card.name));
    svg.push_str(&format!(
        "<text class=\"application\" x=\"{:.0}\" y=\"{:.0}\"><tspan class=\"tenant\">{}/</tspan>{}</text>\n",
        place.x + 16.0,
        place.y + HEADER - 18.0,
        escaped(tenant),
        escaped(name)
    ));
    for node in &card.nodes {
        draw_node(svg, node);
    }
}

fn draw_node(svg: &mut String, node: &Node<'_>) {
    let (place, service) = (node.place, node.service);
    let (fill, stroke) = match &service.inbound {
        Some(_) => ("#fff7ed", "#fdba74"),
        None => ("#f1f5f9", "#e2e8f0"),
    };
    let instances: Vec<String> = service
        .instances
        .iter()
        .map(|instance| format!("{} on {}", instance.instance, instance.host))
        .collect();
    let tip = match &service.inbound {
        Some(at) => format!("{}\ninbound-access at {at}", instances.join("\n")),
        None => instances.join("\n"),
    };
    svg.push_str(&format!(
        "<g><title>{}</title><rect x=\"{:.0}\" y=\"{:.0}\" width=\"{:.0}\" height=\"{:.0}\" rx=\"8\" fill=\"{fill}\" \
         stroke=\"{stroke}\"/>\n",
        escaped(&tip),
        place.x,
        place.y,
        place.width,
        place.height
    ));
    let (x, y) = (place.x + 12.0, place.y);
    svg.push_str(&format!(
        "<text class=\"service\" x=\"{x:.0}\" y=\"{:.0}\">{}</text>\n",
        y + 19.0,
        escaped(&service.service)
    ));
    let count = match service.instances.len() {
        0 => "no instance".to_owned(),
        1 => "1 instance".to_owned(),
        count => format!("{count} instances"),
    };
    svg.push_str(&format!(
        "<text class=\"note\" x=\"{x:.0}\" y=\"{:.0}\">{count}</text>\n",
        y + 35.0
    ));
    if service.inbound.is_some() {
        let (x, y) = (place.right() - 26.0, y + 12.0);
        svg.push_str(&format!(
            "<path d=\"M{:.1} {:.1}v-4a4 4 0 0 1 8 0v4\" fill=\"none\" stroke=\"#c2410c\" stroke-width=\"1.8\"/>\
             <rect x=\"{x:.1}\" y=\"{:.1}\" width=\"12\" height=\"9\" rx=\"2\" fill=\"#c2410c\"/>\n",
            x + 2.0,
            y + 8.0,
            y + 8.0
        ));
    }
    svg.push_str("</g>\n");
}

fn draw_hub(svg: &mut String, number: usize, hub: &Hub<'_>) {
    let place = hub.place;
    let (x, y) = place.middle();
    svg.push_str(&format!(
        "<rect x=\"{:.0}\" y=\"{:.0}\" width=\"{:.0}\" height=\"{:.0}\" rx=\"17\" fill=\"{}\"/>\n\
         <text class=\"hub\" x=\"{x:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>\n",
        place.x,
        place.y,
        place.width,
        place.height,
        colour(number),
        y + 4.0,
        escaped(hub.name)
    ));
}

fn draw_curve(svg: &mut String, arrow: &Arrow) {
    let (stroke, marker) = match arrow.hub {
        Some(hub) => (colour(hub), hub % COLOURS.len() + 1),
        None => (INK, 0),
    };
    let [begin, first, second, end] = arrow.curve;
    svg.push_str(&format!(
        "<path d=\"M{:.1} {:.1}C{:.1} {:.1} {:.1} {:.1} {:.1} {:.1}\" fill=\"none\" stroke=\"{stroke}\" \
         stroke-width=\"1.6\" marker-end=\"url(#head-{marker})\"/>\n",
        begin.0, begin.1, first.0, first.1, second.0, second.1, end.0, end.1
    ));
}

fn draw_label(svg: &mut String, arrow: &Arrow) {
    let place = arrow.label;
    svg.push_str(&format!(
        "<g><title>{}</title><rect x=\"{:.0}\" y=\"{:.0}\" width=\"{:.0}\" height=\"{:.0}\" rx=\"5\" fill=\"#fff\" \
         stroke=\"#cbd5e1\"/><text class=\"label\" x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\" textLength=\"{:.0}\" \
         lengthAdjust=\"spacingAndGlyphs\">{}</text></g>\n",
        escaped(&arrow.why),
        place.x,
        place.y,
        place.width,
        place.height,
        place.middle().0,
        place.y + 14.0,
        label_width(&arrow.text) - 12.0,
        escaped(&arrow.text)
    ));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::tests::shop;
    use super::*;

    #[test]
    fn the_drawing_holds_every_service_and_every_rule_and_is_well_formed() {
        let svg = render(&shop());
        for text in [
            "web",
            "db",
            "store",
            "tcp 5432",
            "shop.yaml:11",
            "acme/floor-data",
        ] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("everything"), "defaults go without saying");
        for element in ["g", "text", "svg", "marker", "title"] {
            let opened =
                svg.matches(&format!("<{element} ")).count() + svg.matches(&format!("<{element}>")).count();
            assert_eq!(opened, svg.matches(&format!("</{element}>")).count(), "{element}");
        }
    }

    #[test]
    fn what_a_document_names_cant_break_out_of_its_text() {
        assert_eq!(escaped("a<b>\"&"), "a&lt;b&gt;&quot;&amp;");
    }
}
