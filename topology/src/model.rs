//! The machine as a plain value: sets of CPUs and nodes, the parts of a host and questions about them.
//! Pure: reads no file and makes no system call.

mod host;
mod index;
mod set;

pub use host::{
    Cache, CacheKind, Core, CoreKindInfo, Device, DeviceKind, Die, Host, HostFault, HostParts, Node, Package,
};
pub use index::{Level, Locality};
pub use set::{CpuId, CpuSet, Id, IdSet, ListError, MAX_ID, NodeId, NodeSet};
