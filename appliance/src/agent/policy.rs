//! `policy diff` and `graph`: who may talk to whom, now and after documents that aren't applied yet.

use super::api::{Graph, PolicyDiffQuery};
use super::{Agent, Refusal, Response};

impl Agent {
    pub(super) async fn policy_diff(&mut self, _query: PolicyDiffQuery) -> Result<Response, Refusal> {
        Err(Refusal::because("temporary"))
    }
    pub(super) fn graph(&self) -> Result<Response, Refusal> {
        Ok(Response::Graph(Graph::default()))
    }
}
