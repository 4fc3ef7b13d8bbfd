//! Response headers: who answers, at what revision and term.

use crate::proto::etcdserverpb::ResponseHeader;
use crate::service::handle::Handle;

/// Fills in who answers; a revision that the state machine gave stays.
pub fn fill(handle: &Handle, header: &mut Option<ResponseHeader>) {
    let header = header.get_or_insert_default();
    if header.revision == 0 {
        header.revision = handle.view().head;
    }
    identify(handle, header);
}

/// A header of `revision`.
pub fn at(handle: &Handle, revision: i64) -> ResponseHeader {
    let mut header = ResponseHeader {
        revision,
        ..Default::default()
    };
    identify(handle, &mut header);
    header
}

/// A header of the newest revision.
pub fn now(handle: &Handle) -> ResponseHeader {
    at(handle, handle.view().head)
}

fn identify(handle: &Handle, header: &mut ResponseHeader) {
    let shared = handle.shared();
    header.cluster_id = shared.cluster.0;
    header.member_id = shared.member.0;
    header.raft_term = shared.raft.term();
}
