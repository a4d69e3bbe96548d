//! Typed tables over the database's untyped ones: a key that sorts as it should, a record in JSON.
//!
//! All tables have the same type below, so that a backup copies them without knowing what they hold. JSON lets a record
//! gain fields that have a default; there are no other migrations.

use std::marker::PhantomData;
use std::ops::Bound;

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;

/// What every table is to the database.
pub(super) type RawTable<'a> = TableDefinition<'a, &'static [u8], &'static [u8]>;

/// A table of records of one type.
pub(crate) struct Records<K, V> {
    name: &'static str,
    types: PhantomData<fn(K) -> V>,
}

/// What a table can be keyed by.
pub(crate) trait RecordKey: Sized {
    /// Bytes that sort as the keys do.
    fn to_bytes(&self) -> Vec<u8>;
    /// The key again; none where the bytes are no such key.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

impl RecordKey for String {
    fn to_bytes(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::from_utf8(bytes.to_vec()).ok()
    }
}

impl RecordKey for u64 {
    fn to_bytes(&self) -> Vec<u8> {
        self.to_be_bytes().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self::from_be_bytes(bytes.try_into().ok()?))
    }
}

/// Something that can be read from: a read, or a write with what it has written so far.
pub(crate) trait Source {
    /// One record.
    ///
    /// # Errors
    /// As [`StoreError`].
    fn find<K: RecordKey, V: DeserializeOwned>(
        &self,
        records: Records<K, V>,
        key: &K,
    ) -> Result<Option<V>, StoreError>;

    /// Goes over the records by their keys, from `from` on, forwards or backwards, until `visit` has had enough and
    /// says false.
    ///
    /// # Errors
    /// As [`StoreError`].
    fn visit<K: RecordKey, V: DeserializeOwned>(
        &self,
        records: Records<K, V>,
        from: Bound<K>,
        order: Order,
        visit: impl FnMut(K, V) -> bool,
    ) -> Result<(), StoreError>;

    /// How many records there are.
    ///
    /// # Errors
    /// As [`StoreError`].
    fn count<K, V>(&self, records: Records<K, V>) -> Result<u64, StoreError>;

    /// The greatest key.
    ///
    /// # Errors
    /// As [`StoreError`].
    fn last_key<K: RecordKey, V>(&self, records: Records<K, V>) -> Result<Option<K>, StoreError>;

    /// All records, by their keys.
    ///
    /// # Errors
    /// As [`StoreError`].
    fn all<K: RecordKey, V: DeserializeOwned>(
        &self,
        records: Records<K, V>,
    ) -> Result<Vec<(K, V)>, StoreError> {
        let mut found = Vec::new();
        self.visit(records, Bound::Unbounded, Order::Ascending, |key, value| {
            found.push((key, value));
            true
        })?;
        Ok(found)
    }
}

/// Which way a table is gone over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The least key first; a bound is where it begins.
    Ascending,
    /// The greatest key first; a bound is where it begins, too.
    Descending,
}

/// A consistent look at the store as it was when it was opened.
pub(crate) struct Reader {
    pub(super) transaction: ReadTransaction,
}

/// A change that is not there yet: all of it comes with its commit, or nothing.
pub(crate) struct Writer {
    pub(super) transaction: WriteTransaction,
}

impl Writer {
    /// Writes a record, over the one that was there.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub(crate) fn put<K: RecordKey, V: Serialize>(
        &self,
        records: Records<K, V>,
        key: &K,
        value: &V,
    ) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(value).map_err(|error| records.unreadable(error))?;
        self.transaction.open_table(records.raw())?.insert(key.to_bytes().as_slice(), bytes.as_slice())?;
        Ok(())
    }

    /// Removes a record; whether it was there.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub(crate) fn remove<K: RecordKey, V>(
        &self,
        records: Records<K, V>,
        key: &K,
    ) -> Result<bool, StoreError> {
        let mut table = self.transaction.open_table(records.raw())?;
        let was_there = table.remove(key.to_bytes().as_slice())?.is_some();
        Ok(was_there)
    }

    /// Removes the record with the least key.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub(crate) fn remove_first<K, V>(&self, records: Records<K, V>) -> Result<(), StoreError> {
        self.transaction.open_table(records.raw())?.pop_first()?;
        Ok(())
    }
}

impl Source for Reader {
    fn find<K: RecordKey, V: DeserializeOwned>(
        &self,
        records: Records<K, V>,
        key: &K,
    ) -> Result<Option<V>, StoreError> {
        find_in(&self.transaction.open_table(records.raw())?, records, key)
    }

    fn visit<K: RecordKey, V: DeserializeOwned>(
        &self,
        records: Records<K, V>,
        from: Bound<K>,
        order: Order,
        visit: impl FnMut(K, V) -> bool,
    ) -> Result<(), StoreError> {
        visit_in(&self.transaction.open_table(records.raw())?, records, from, order, visit)
    }

    fn count<K, V>(&self, records: Records<K, V>) -> Result<u64, StoreError> {
        use redb::ReadableTableMetadata as _;
        Ok(self.transaction.open_table(records.raw())?.len()?)
    }

    fn last_key<K: RecordKey, V>(&self, records: Records<K, V>) -> Result<Option<K>, StoreError> {
        last_key_in(&self.transaction.open_table(records.raw())?)
    }
}

impl Source for Writer {
    fn find<K: RecordKey, V: DeserializeOwned>(
        &self,
        records: Records<K, V>,
        key: &K,
    ) -> Result<Option<V>, StoreError> {
        find_in(&self.transaction.open_table(records.raw())?, records, key)
    }

    fn visit<K: RecordKey, V: DeserializeOwned>(
        &self,
        records: Records<K, V>,
        from: Bound<K>,
        order: Order,
        visit: impl FnMut(K, V) -> bool,
    ) -> Result<(), StoreError> {
        visit_in(&self.transaction.open_table(records.raw())?, records, from, order, visit)
    }

    fn count<K, V>(&self, records: Records<K, V>) -> Result<u64, StoreError> {
        use redb::ReadableTableMetadata as _;
        Ok(self.transaction.open_table(records.raw())?.len()?)
    }

    fn last_key<K: RecordKey, V>(&self, records: Records<K, V>) -> Result<Option<K>, StoreError> {
        last_key_in(&self.transaction.open_table(records.raw())?)
    }
}

impl<K, V> Records<K, V> {
    /// The table with this name. Each is named once, beside its record's type, and listed in `service::TABLES`.
    pub(crate) const fn new(name: &'static str) -> Self {
        Self { name, types: PhantomData }
    }

    /// What the database calls it.
    pub(crate) const fn name(self) -> &'static str {
        self.name
    }

    fn raw(self) -> RawTable<'static> {
        RawTable::new(self.name)
    }

    fn unreadable(self, error: serde_json::Error) -> StoreError {
        StoreError::Record { table: self.name, error }
    }
}

// Derived, they would ask the same of the types of the key and of the record.
impl<K, V> Clone for Records<K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for Records<K, V> {}

fn find_in<K: RecordKey, V: DeserializeOwned>(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    records: Records<K, V>,
    key: &K,
) -> Result<Option<V>, StoreError> {
    let Some(bytes) = table.get(key.to_bytes().as_slice())? else { return Ok(None) };
    serde_json::from_slice(bytes.value()).map(Some).map_err(|error| records.unreadable(error))
}

fn visit_in<K: RecordKey, V: DeserializeOwned>(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    records: Records<K, V>,
    from: Bound<K>,
    order: Order,
    mut visit: impl FnMut(K, V) -> bool,
) -> Result<(), StoreError> {
    let from = from.map(|key| key.to_bytes());
    let from = from.as_ref().map(Vec::as_slice);
    let mut range = match order {
        Order::Ascending => table.range::<&[u8]>((from, Bound::Unbounded))?,
        Order::Descending => table.range::<&[u8]>((Bound::Unbounded, from))?,
    };
    loop {
        let next = match order {
            Order::Ascending => range.next(),
            Order::Descending => range.next_back(),
        };
        let Some(entry) = next else { return Ok(()) };
        let (key, value) = entry?;
        let value = serde_json::from_slice(value.value()).map_err(|error| records.unreadable(error))?;
        let key = K::from_bytes(key.value()).ok_or_else(|| foreign_key(records.name))?;
        if !visit(key, value) {
            return Ok(());
        }
    }
}

fn last_key_in<K: RecordKey>(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
) -> Result<Option<K>, StoreError> {
    Ok(table.last()?.and_then(|(key, _)| K::from_bytes(key.value())))
}

fn foreign_key(table: &str) -> StoreError {
    StoreError::Foreign(format!("the table {table} has a key that is none of this program's"))
}
