//! What black-box tests and the tour share: echo upstreams and child processes.
//!
//! Nothing here links the gateway: it is driven through its command line, its sockets and etcd, as
//! a user would.

pub mod certificate;
pub mod compare;
pub mod counted;
pub mod echo;
pub mod etcd;
pub mod figures;
pub mod gateway;
pub mod machine;
pub mod process;
pub mod routes;
pub mod ssls;
pub mod verdict;
