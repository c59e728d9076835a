//! Loads of many keys with one call of their loader.

use std::future::Future;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::cache::Cache;
use crate::key::{CarriedHash, Encoded, Key, StoredKey};
use crate::leader::{Ended, Leader, Timed, Turn, Waiting};
use crate::load::LoadError;
use crate::tags::Loaded;

/// Keys of one call by what becomes of them, each by its place in it.
struct Round<K: Key, V: Clone + Send + Sync + 'static> {
    led: Vec<(usize, Leader<K, V>)>,
    joined: Vec<(usize, Arc<Waiting<V>>)>,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Cache<K, V> {
    /// The values of several keys, in their order; `None` for one that has no value. `load` is called once with the
    /// keys that are neither cached nor being loaded, and answers with those of them that have a value, in any order;
    /// what it was not asked for is left out. It is called again only if another caller's load of a key came to
    /// nothing.
    ///
    /// Each key is loaded under the rules of [`Cache::get_or_load`]: one loader at a time, which others join, and a
    /// result that is stored only if nothing changed or fenced that key meanwhile. That a key has no value is
    /// remembered as by [`Cache::get_or_load_optional`].
    ///
    /// # Errors
    /// [`LoadError`]: a key cannot be used, the loader failed, or the one of another caller that loads one of the keys
    /// did. What others brought stays cached.
    ///
    /// # Cancel safety
    /// As [`Cache::get_or_load`], for each key.
    pub async fn get_or_load_many<E, F, I>(
        &self,
        keys: &[K],
        mut load: impl FnMut(Vec<K>) -> F,
    ) -> Result<Vec<Option<V>>, LoadError<E>>
    where
        K: Clone,
        E: Send + Sync + 'static,
        F: Future<Output = Result<I, E>>,
        I: IntoIterator<Item = (K, V)>,
    {
        let core = &self.core;
        let encoded: Vec<_> = keys.iter().map(|key| Encoded::new(core.id, key)).collect::<Result<_, _>>()?;
        let mut values: Vec<Option<V>> = keys.iter().map(|_| None).collect();
        let mut open: Vec<usize> = (0..keys.len()).collect();
        let mut first = true;
        while !open.is_empty() {
            let Round { led, joined } =
                self.round(&encoded, open.drain(..), std::mem::take(&mut first), &mut values);
            if !led.is_empty() {
                let asked = led.iter().map(|(index, _)| keys[*index].clone()).collect();
                self.lead_many(led, || load(asked), &mut values).await?;
            }
            // Only now: who loads this call's keys may wait for one of them himself.
            for (index, waiting) in joined {
                match waiting.wait().await {
                    Ended::Loaded(value) => values[index] = Some(value.clone()),
                    Ended::Absent => {}
                    Ended::Failed(error) => match error.clone().downcast() {
                        Ok(error) => return Err(LoadError::Loader(error)),
                        Err(_) => open.push(index),
                    },
                    Ended::TimedOut | Ended::Abandoned => open.push(index),
                }
            }
        }
        Ok(values)
    }

    /// Takes what is cached, and finds or begins the loads of everything else.
    fn round(
        &self,
        encoded: &[Encoded],
        open: impl Iterator<Item = usize>,
        first: bool,
        values: &mut [Option<V>],
    ) -> Round<K, V> {
        let core = &self.core;
        let mut round = Round { led: Vec::new(), joined: Vec::new() };
        for index in open {
            let key = &encoded[index];
            let (turn, outcome) = core.turn(key, true);
            if first {
                core.stats.count_read(outcome);
            }
            match turn {
                Turn::Ready(value) => values[index] = value,
                Turn::Join(waiting) => round.joined.push((index, waiting)),
                Turn::Lead(start, waiting) => {
                    let leader = Leader::new(core.clone(), key.clone(), start, waiting);
                    let leader = if round.led.is_empty() { leader } else { leader.uncounted() };
                    round.led.push((index, leader));
                }
            }
        }
        round
    }

    /// Runs the loader of several keys.
    async fn lead_many<E, F, I>(
        &self,
        led: Vec<(usize, Leader<K, V>)>,
        load: impl FnOnce() -> F,
        values: &mut [Option<V>],
    ) -> Result<(), LoadError<E>>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<I, E>>,
        I: IntoIterator<Item = (K, V)>,
    {
        let core = &*self.core;
        core.stats.loads.count();
        let timed = Timed::start(core.domain.clock(), &core.load_time);
        let result = load().await;
        drop(timed);
        match result {
            Ok(answer) => {
                let mut brought: HashMap<StoredKey, V, CarriedHash> = HashMap::default();
                for (key, value) in answer {
                    brought.insert(Encoded::new(core.id, &key)?.borrowed().stored(), value);
                }
                for (index, leader) in led {
                    let value = brought.remove(&leader.key());
                    leader.end_loaded(value.clone().map(Loaded::new));
                    values[index] = value;
                }
                core.tell_local_events();
                Ok(())
            }
            Err(error) => {
                let error = Arc::new(error);
                led.iter().for_each(|(_, leader)| leader.end_failed(error.clone()));
                Err(LoadError::Loader(error))
            }
        }
    }
}
