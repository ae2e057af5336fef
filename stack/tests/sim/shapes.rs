//! Makes tests of stories: each runs between foreign peers, and between hosts of one, two, and two and three shards.

macro_rules! in_every_shape {
    ($($story:ident,)+) => {
        in_shape! { between_foreign_peers, Shape::Foreign([1, 1]) => $($story,)+ }
        in_shape! { with_one_shard, Shape::Shards([1, 1]) => $($story,)+ }
        in_shape! { with_two_shards, Shape::Shards([2, 2]) => $($story,)+ }
        in_shape! { with_two_and_three_shards, Shape::Shards([2, 3]) => $($story,)+ }
    };
}

macro_rules! in_shape {
    ($name:ident, $shape:expr => $($story:ident,)+) => {
        mod $name {
            use crate::sim::plans::{Shape, shaped};

            $(#[test]
            fn $story() {
                shaped($shape, super::$story);
            })+
        }
    };
}
