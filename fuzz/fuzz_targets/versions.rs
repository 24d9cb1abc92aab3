//! Invariant: any two texts have an order, it turns around with them, and each equals itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cmp::Ordering;
use vm2k::pkgdb::order::{Op, Order};

fuzz_target!(|texts: (&str, &str)| {
    let (a, b) = texts;
    for order in [Order::Dpkg, Order::Rpm, Order::Apk, Order::Alpm] {
        assert_eq!(order.compare(a, b), order.compare(b, a).reverse());
        assert_eq!(order.compare(a, a), Ordering::Equal);
        for op in [Op::Less, Op::Equal, Op::Fuzzy, Op::GreaterFuzzy] {
            order.satisfies(a, op, b);
        }
    }
});
