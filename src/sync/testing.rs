//! The locks of the model checker with the methods of parking_lot, and how it is run.

use std::ops::{Deref, DerefMut};
use std::time::Instant;

use loom::sync as model;
pub use loom::sync::{RwLockReadGuard, RwLockWriteGuard};

pub use self::{CheckedCondvar as Condvar, CheckedGuard as MutexGuard, CheckedMutex as Mutex, CheckedRwLock as RwLock};

const SOUND: &str = "the checker stops at the first panic";

#[derive(Default)]
pub struct CheckedMutex<T>(model::Mutex<T>);
#[derive(Default)]
pub struct CheckedRwLock<T>(model::RwLock<T>);
#[derive(Default)]
pub struct CheckedCondvar(model::Condvar);

/// Empty while it waits only.
pub struct CheckedGuard<'a, T>(&'a CheckedMutex<T>, Option<model::MutexGuard<'a, T>>);

pub struct WaitResult(bool);

impl WaitResult {
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

impl<T> CheckedMutex<T> {
    pub fn new(value: T) -> Self {
        Self(model::Mutex::new(value))
    }

    pub fn lock(&self) -> CheckedGuard<'_, T> {
        CheckedGuard(self, Some(self.0.lock().expect(SOUND)))
    }

    pub fn try_lock(&self) -> Option<CheckedGuard<'_, T>> {
        Some(CheckedGuard(self, Some(self.0.try_lock().ok()?)))
    }
}

impl<T> CheckedRwLock<T> {
    pub fn new(value: T) -> Self {
        Self(model::RwLock::new(value))
    }

    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().expect(SOUND)
    }

    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().expect(SOUND)
    }
}

impl CheckedCondvar {
    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    pub fn wait<T>(&self, guard: &mut CheckedGuard<'_, T>) {
        let held = guard.1.take().expect("held");
        guard.1 = Some(self.0.wait(held).expect(SOUND));
    }

    /// Time passes at once: whatever others do meanwhile, they may do before.
    pub fn wait_until<T>(&self, guard: &mut CheckedGuard<'_, T>, _: Instant) -> WaitResult {
        guard.1 = None;
        loom::thread::yield_now();
        guard.1 = Some(guard.0.0.lock().expect(SOUND));
        WaitResult(true)
    }
}

impl<T> Deref for CheckedGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.1.as_ref().expect("held")
    }
}

impl<T> DerefMut for CheckedGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.1.as_mut().expect("held")
    }
}

/// Does `work` in every order of its threads that takes few preemptions, and with every value that a load may see.
#[cfg(test)]
pub fn explore(work: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.max_branches = 10_000;
    model.max_duration = Some(std::time::Duration::from_secs(15));
    model.check(work);
}
