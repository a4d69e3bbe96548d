//! The master's disk, in memory: what was written is there after a crash, what the store still held back is not.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Clone, Debug, Default)]
pub(super) struct Platter(Arc<Mutex<Vec<u8>>>);

impl Platter {
    /// As a new process finds it: what is written to the one is not seen in the other.
    pub(super) fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.bytes().clone())))
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap()
    }
}

fn range(offset: u64, length: usize) -> std::ops::Range<usize> {
    let offset = usize::try_from(offset).unwrap();
    offset..offset + length
}

impl redb::StorageBackend for Platter {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        out.copy_from_slice(&self.bytes()[range(offset, out.len())]);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.bytes().resize(usize::try_from(length).unwrap(), 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.bytes()[range(offset, data.len())].copy_from_slice(data);
        Ok(())
    }
}
