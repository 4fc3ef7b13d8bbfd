//! Lock: not built yet; every call says so.

use tonic::{Request, Response, Status};

use crate::error::Error;
use crate::proto::v3lockpb::{
    LockRequest, LockResponse, UnlockRequest, UnlockResponse, lock_server::Lock,
};

pub struct LockService;

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(&self, _request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        Err(Error::LockNotBuilt.into())
    }

    async fn unlock(
        &self,
        _request: Request<UnlockRequest>,
    ) -> Result<Response<UnlockResponse>, Status> {
        Err(Error::LockNotBuilt.into())
    }
}
