//! Lock: as etcd's server-side lock, which waits in the call itself.

use tonic::{Request, Response, Status};

use super::{arriving, caller, header};
use crate::error::Error;
use crate::proto::v3lockpb::{
    LockRequest, LockResponse, UnlockRequest, UnlockResponse, lock_server::Lock,
};
use crate::service::concurrency::Concurrency;
use crate::service::handle::Handle;

pub struct LockService {
    handle: Handle,
    concurrency: Concurrency,
}

impl LockService {
    pub fn new(handle: Handle, concurrency: Concurrency) -> Self {
        Self {
            handle,
            concurrency,
        }
    }
}

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let caller = caller::of(&request);
        let kept = arriving::kept(&request);
        let request = request.into_inner();
        let entered = self
            .concurrency
            .enter_lock(&caller, &request.name, request.lease);
        // Boxed: what it takes is free again while the call waits.
        let candidate = Box::pin(entered).await.map_err(Error::without_code)?;
        // What waits holds no more than its candidate.
        drop(request);
        kept.lock().clear();
        let (key, revision) = candidate.lock().await.map_err(Error::without_code)?;
        Ok(Response::new(LockResponse {
            header: Some(header::at(&self.handle, revision)),
            key,
        }))
    }

    async fn unlock(
        &self,
        request: Request<UnlockRequest>,
    ) -> Result<Response<UnlockResponse>, Status> {
        let caller = caller::of(&request);
        let request = request.into_inner();
        let unlocked = self.concurrency.unlock(&caller, request.key).await;
        let revision = unlocked.map_err(Error::without_code)?;
        Ok(Response::new(UnlockResponse {
            header: Some(header::at(&self.handle, revision)),
        }))
    }
}
