//! A table that remembers which services it was changed for, so that what must survive svd's death is written, and no more.

use super::event::ServiceId;
use super::generation::Worker;
use super::service::Service;
use std::collections::{BTreeMap, BTreeSet};

pub(super) trait OfService {
    fn service(&self) -> ServiceId;
}

impl OfService for Box<Service> {
    fn service(&self) -> ServiceId {
        self.id
    }
}

impl OfService for Box<Worker> {
    fn service(&self) -> ServiceId {
        self.generation.service
    }
}

/// Whoever gets a value to change it has changed it, as far as this table knows.
#[derive(Clone, Debug)]
pub(super) struct Tracked<K, V> {
    map: BTreeMap<K, V>,
    changed: BTreeSet<ServiceId>,
}

impl<K: Ord, V: OfService> Tracked<K, V> {
    pub fn new() -> Self {
        Tracked { map: BTreeMap::new(), changed: BTreeSet::new() }
    }

    pub fn map(&self) -> &BTreeMap<K, V> {
        &self.map
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        self.map.get(key)
    }

    pub fn contains_key(&self, key: &K) -> bool {
        self.map.contains_key(key)
    }

    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let value = self.map.get_mut(key)?;
        self.changed.insert(value.service());
        Some(value)
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.map.values()
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.changed.extend(self.map.values().map(OfService::service));
        self.map.values_mut()
    }

    pub fn insert(&mut self, key: K, value: V) {
        self.changed.insert(value.service());
        self.map.insert(key, value);
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let value = self.map.remove(key)?;
        self.changed.insert(value.service());
        Some(value)
    }

    /// The services that it was changed for since this was last asked.
    pub fn take_changed(&mut self) -> BTreeSet<ServiceId> {
        std::mem::take(&mut self.changed)
    }
}
