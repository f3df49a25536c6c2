//! The order of locks.

use super::*;

#[test]
fn locks_are_taken_in_their_order() {
    let (first, second) = (Mutex::<1, ()>::new(()), RwLock::<2, ()>::new(()));
    let (low, high) = (first.lock(), second.write_nth(7));
    let third = RwLock::<2, ()>::new(());
    let highest = third.write_nth(8);
    drop((low, high, highest));
    drop(first.lock());
}

#[test]
#[should_panic(expected = "a lock of rank (1, 0) is taken while one of rank (2, 0) is held")]
fn the_wrong_order_is_a_panic() {
    let (first, second) = (Mutex::<1, ()>::new(()), RwLock::<2, ()>::new(()));
    let _high = second.read();
    let _low = first.lock();
}

#[test]
#[should_panic(expected = "of rank (2, 3)")]
fn of_one_rank_the_lower_comes_first() {
    let locks = [(); 2].map(RwLock::<2, ()>::new);
    let _high = locks[1].write_nth(3);
    let _low = locks[0].write_nth(2);
}

#[test]
fn who_does_not_wait_may_have_any() {
    let (first, second) = (Mutex::<1, ()>::new(()), Mutex::<2, ()>::new(()));
    let _high = second.lock();
    assert!(first.try_lock().is_some());
}
