//! End-to-end tests: each test makes its own network namespaces through `tidegate lab`, and removes them.
