//! The hosts of a site, which tell each other what they have.

mod message;
mod record;
mod replica;
