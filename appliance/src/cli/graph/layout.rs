//! Where everything of the drawing stands, in pixels: a card for each application with its services, shared networks
//! below, an arrow for each edge that isn't everybody's.

use super::full_name;
use crate::agent::api::{Graph, GraphEdge, GraphService};
use std::collections::BTreeMap;

pub(super) const CARD_WIDTH: f64 = 230.0;
pub(super) const NODE_HEIGHT: f64 = 44.0;
pub(super) const HEADER: f64 = 46.0;
const PADDING: f64 = 14.0;
const GAP: f64 = 10.0;
const ROW_GAP: f64 = 70.0;
const MARGIN: f64 = 40.0;
const TITLE: f64 = 70.0;
/// How much further out each next arc of a card goes.
const ARC: f64 = 26.0;
const HUB_HEIGHT: f64 = 34.0;
const LABEL_HEIGHT: f64 = 20.0;
/// Width of a letter of a label.
const LETTER: f64 = 6.4;

/// A rectangle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

impl Place {
    pub(super) fn middle(&self) -> (f64, f64) {
        (self.x + self.width / 2.0, self.y + self.height / 2.0)
    }

    pub(super) fn right(&self) -> f64 {
        self.x + self.width
    }

    pub(super) fn bottom(&self) -> f64 {
        self.y + self.height
    }

    /// Whether neither covers any of the other.
    fn is_apart(&self, other: &Self) -> bool {
        self.right() <= other.x
            || other.right() <= self.x
            || self.bottom() <= other.y
            || other.bottom() <= self.y
    }
}

/// An application.
pub(super) struct Card<'a> {
    pub(super) name: &'a str,
    pub(super) place: Place,
    pub(super) nodes: Vec<Node<'a>>,
}

/// A service.
pub(super) struct Node<'a> {
    pub(super) service: &'a GraphService,
    pub(super) place: Place,
}

/// A shared network.
pub(super) struct Hub<'a> {
    pub(super) name: &'a str,
    pub(super) place: Place,
    /// The cards that it joins, by number.
    pub(super) members: Vec<usize>,
}

/// An arrow: a cubic curve, and where its label stands.
pub(super) struct Arrow {
    pub(super) curve: [(f64, f64); 4],
    pub(super) label: Place,
    pub(super) text: String,
    pub(super) why: String,
    /// Which shared network it is in, by number; `None`: an application's own.
    pub(super) hub: Option<usize>,
}

/// The whole drawing.
pub(super) struct Drawing<'a> {
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) cards: Vec<Card<'a>>,
    pub(super) hubs: Vec<Hub<'a>>,
    pub(super) arrows: Vec<Arrow>,
}

/// Width of a label.
pub(super) fn label_width(text: &str) -> f64 {
    text.chars().count() as f64 * LETTER + 12.0
}

/// Places everything.
pub(super) fn place(graph: &Graph) -> Drawing<'_> {
    let names: Vec<&str> = graph
        .networks
        .iter()
        .filter(|network| !network.shared)
        .map(|network| network.name.as_str())
        .collect();
    let columns = (1..=4)
        .find(|columns| columns * columns >= names.len())
        .unwrap_or(4);
    let longest = graph
        .edges
        .iter()
        .filter(|edge| is_drawn(graph, edge))
        .map(|edge| label_width(&edge.passes.join(", ")))
        .fold(60.0, f64::max);
    let arcs = |name: &&str| {
        let own = |end: &str| {
            end.rsplit_once('/')
                .is_some_and(|(application, _)| application == *name)
        };
        let inside = |from: &str, to: &str| own(to) && (own(from) || !from.contains('/'));
        graph
            .edges
            .iter()
            .filter(|edge| is_drawn(graph, edge) && inside(&edge.from, &edge.to))
            .count()
    };
    let most = names.iter().map(arcs).max().unwrap_or(0);
    let stride = CARD_WIDTH + 60.0 + longest + ARC * most as f64;

    let mut cards = Vec::new();
    let mut y = MARGIN + TITLE;
    for row in names.chunks(columns) {
        let mut tallest: f64 = 0.0;
        for (column, name) in row.iter().enumerate() {
            let card = card(graph, name, MARGIN + column as f64 * stride, y);
            tallest = tallest.max(card.place.height);
            cards.push(card);
        }
        y += tallest + ROW_GAP;
    }
    let hubs = hubs(graph, &cards, y);
    let arrows = arrows(graph, &cards, &hubs);
    let edge = |places: &mut dyn Iterator<Item = f64>| places.fold(0.0, f64::max);
    let width = edge(
        &mut cards
            .iter()
            .map(|card| card.place.right())
            .chain(hubs.iter().map(|hub| hub.place.right()))
            .chain(arrows.iter().map(|arrow| arrow.label.right())),
    );
    let height = if hubs.is_empty() {
        y - ROW_GAP
    } else {
        y + HUB_HEIGHT
    };
    Drawing {
        width: width.max(420.0) + MARGIN,
        height: height + MARGIN,
        cards,
        hubs,
        arrows,
    }
}

fn card<'a>(graph: &'a Graph, name: &'a str, x: f64, y: f64) -> Card<'a> {
    let mut nodes = Vec::new();
    let mut at = y + HEADER;
    for service in graph
        .services
        .iter()
        .filter(|service| service.application == name)
    {
        let place = Place {
            x: x + PADDING,
            y: at,
            width: CARD_WIDTH - 2.0 * PADDING,
            height: NODE_HEIGHT,
        };
        nodes.push(Node { service, place });
        at += NODE_HEIGHT + GAP;
    }
    let place = Place {
        x,
        y,
        width: CARD_WIDTH,
        height: at - y - GAP + PADDING,
    };
    Card { name, place, nodes }
}

/// Shared networks stand below, each as near to the middle of its members as those before it let it.
fn hubs<'a>(graph: &'a Graph, cards: &[Card<'_>], y: f64) -> Vec<Hub<'a>> {
    let mut hubs: Vec<Hub<'a>> = graph
        .networks
        .iter()
        .filter(|network| network.shared)
        .map(|network| {
            let members: Vec<usize> = (0..cards.len())
                .filter(|number| {
                    let card = cards.get(*number);
                    card.is_some_and(|card| network.applications.iter().any(|name| name == card.name))
                })
                .collect();
            let middles = members
                .iter()
                .filter_map(|number| Some(cards.get(*number)?.place.middle().0));
            let middle = middles.sum::<f64>() / members.len().max(1) as f64;
            let width = label_width(&network.name) + 40.0;
            Hub {
                name: &network.name,
                place: Place {
                    x: middle - width / 2.0,
                    y,
                    width,
                    height: HUB_HEIGHT,
                },
                members,
            }
        })
        .collect();
    hubs.sort_by(|a, b| a.place.x.total_cmp(&b.place.x));
    let mut free = MARGIN;
    for hub in &mut hubs {
        hub.place.x = hub.place.x.max(free);
        free = hub.place.right() + 30.0;
    }
    hubs
}

fn arrows(graph: &Graph, cards: &[Card<'_>], hubs: &[Hub<'_>]) -> Vec<Arrow> {
    let nodes: BTreeMap<String, (usize, Place)> = cards
        .iter()
        .enumerate()
        .flat_map(|(number, card)| {
            let nodes = card.nodes.iter();
            nodes.map(move |node| (full_name(node.service), (number, node.place)))
        })
        .collect();
    let mut taken: Vec<Place> = cards.iter().map(|card| card.place).collect();
    let mut arcs = vec![0_usize; cards.len()];
    let mut arrows = Vec::new();
    for edge in graph.edges.iter().filter(|edge| is_drawn(graph, edge)) {
        let Some((to_card, to)) = nodes.get(&edge.to) else {
            continue;
        };
        let passes = edge.passes.join(", ");
        let (name, some) = edge.from.split_once(AT).unwrap_or((&edge.from, ""));
        let meant = match some {
            "" => passes.clone(),
            addresses => format!("{addresses} · {passes}"),
        };
        let (text, curve) = match nodes.get(name) {
            Some((from_card, from)) if from_card != to_card => (meant, across(from, to)),
            Some((_, from)) => (meant, arc(from, to, &mut arcs, *to_card)),
            // No service: a prefix, or anybody. The arrow comes from outside of the card.
            None => (
                format!("{} · {passes}", edge.from),
                arc(to, to, &mut arcs, *to_card),
            ),
        };
        let label = label(&curve, &text, &taken);
        taken.push(label);
        arrows.push(Arrow {
            curve,
            label,
            text,
            why: edge.why.join(", "),
            hub: hubs.iter().position(|hub| hub.name == edge.network),
        });
    }
    arrows
}

/// Stands between a service and those of its addresses that an edge means.
const AT: &str = " at ";

/// Not what everybody may; and what an application's services may in their own network isn't drawn once more for each
/// network that they share with others.
fn is_drawn(graph: &Graph, edge: &GraphEdge) -> bool {
    let is_repeated = || {
        let own = edge.to.rsplit_once('/').map(|(application, _)| application);
        Some(edge.network.as_str()) != own
            && graph.edges.iter().any(|other| {
                Some(other.network.as_str()) == own
                    && (&other.from, &other.to, &other.passes) == (&edge.from, &edge.to, &edge.passes)
            })
    };
    !edge.is_default() && !is_repeated()
}

/// Where an arrow's label stands: at its middle, or as near to it as what stands there lets it.
fn label(curve: &[(f64, f64); 4], text: &str, taken: &[Place]) -> Place {
    let (x, y) = point(curve, 0.5);
    let width = label_width(text);
    let is_arc = curve[1].0 > curve[0].0 && curve[2].0 > curve[3].0;
    let at = |step: i32| Place {
        x: if is_arc { x - 14.0 } else { x - width / 2.0 },
        y: y - 10.0 + f64::from(step) * (LABEL_HEIGHT + 3.0),
        width,
        height: LABEL_HEIGHT,
    };
    let is_free = |place: &Place| taken.iter().all(|other| place.is_apart(other));
    // 0, 1, -1, 2, -2, …
    let steps = (0..40).map(|step| if step % 2 == 1 { step / 2 + 1 } else { -step / 2 });
    steps.map(at).find(is_free).unwrap_or_else(|| at(0))
}

/// Round the right side of a card, each further out than the one before.
fn arc(from: &Place, to: &Place, arcs: &mut [usize], card: usize) -> [(f64, f64); 4] {
    let number = arcs.get_mut(card).map_or(0, |count| {
        *count += 1;
        *count
    });
    let reach = 30.0 + ARC * number as f64;
    let apart = if from == to { 10.0 } else { 0.0 };
    // Those that come back to one service leave above and arrive below the middle.
    let spread = 4.0 * (number % 4) as f64;
    let begin = (from.right(), from.middle().1 - apart - spread);
    let end = (to.right(), to.middle().1 + apart + spread);
    [begin, (begin.0 + reach, begin.1), (end.0 + reach, end.1), end]
}

/// Between two cards, from the side that faces the other one.
fn across(from: &Place, to: &Place) -> [(f64, f64); 4] {
    let (begin, end, reach) = if from.right() < to.x {
        ((from.right(), from.middle().1), (to.x, to.middle().1), 70.0)
    } else if to.right() < from.x {
        (
            (from.x, from.middle().1 + 6.0),
            (to.right(), to.middle().1 + 6.0),
            -70.0,
        )
    } else {
        // One above the other.
        let begin = (from.right(), from.middle().1);
        let end = (to.right(), to.middle().1);
        return [begin, (begin.0 + 90.0, begin.1), (end.0 + 90.0, end.1), end];
    };
    [begin, (begin.0 + reach, begin.1), (end.0 - reach, end.1), end]
}

/// A point of a cubic curve.
pub(super) fn point(curve: &[(f64, f64); 4], at: f64) -> (f64, f64) {
    let rest = 1.0 - at;
    let weights = [
        rest.powi(3),
        3.0 * rest.powi(2) * at,
        3.0 * rest * at.powi(2),
        at.powi(3),
    ];
    curve
        .iter()
        .zip(weights)
        .fold((0.0, 0.0), |(x, y), (point, weight)| {
            (x + point.0 * weight, y + point.1 * weight)
        })
}

#[cfg(test)]
mod tests {
    use super::super::tests::shop;
    use super::*;

    #[test]
    fn nothing_covers_anything_and_all_of_it_is_inside() {
        let graph = shop();
        let drawing = place(&graph);
        assert_eq!(
            (drawing.cards.len(), drawing.hubs.len(), drawing.arrows.len()),
            (2, 1, 2)
        );
        let cards: Vec<_> = drawing.cards.iter().map(|card| card.place).collect();
        assert!(cards[0].is_apart(&cards[1]));
        for hub in &drawing.hubs {
            assert!(cards.iter().all(|card| card.is_apart(&hub.place)));
        }
        for place in cards
            .iter()
            .chain(drawing.hubs.iter().map(|hub| &hub.place))
            .chain(drawing.arrows.iter().map(|arrow| &arrow.label))
        {
            assert!(place.x >= 0.0 && place.right() <= drawing.width, "{place:?}");
            assert!(place.y >= 0.0 && place.bottom() <= drawing.height, "{place:?}");
        }
    }
}
