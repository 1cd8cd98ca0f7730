//! BARs and doorbells that the guest moves.

use super::*;

#[test]
fn a_bar_moves_is_switched_off_and_goes_with_its_function() {
    let m = Machine::new(0);
    let (a, _) = m.plug(false);
    let boot = LOW.base + LOW.length - SIZE;
    assert!(m.answers(boot));
    let bar = config(1, regs::BAR0);
    // Sizing while decoding: it answers nowhere, and comes back.
    m.set(bar, u32::MAX);
    assert_eq!(m.get(bar), 0xfff8_0000);
    assert!(!m.answers(boot) && !m.answers(0xfff8_0000));
    m.set(bar, boot as u32);
    assert!(m.answers(boot));
    m.set(bar, 0xd000_0000);
    assert!(m.answers(0xd000_0000) && !m.answers(boot));
    m.set(config(1, regs::COMMAND), 0);
    assert!(!m.answers(0xd000_0000));
    m.set(bar, 0xd100_0000);
    assert!(!m.answers(0xd100_0000));
    m.set(config(1, regs::COMMAND), 2);
    assert!(m.answers(0xd100_0000));
    // Outside the windows, over the enhanced window, over a neighbour.
    for base in [0u64, 0x1000_0000, ECAM, 0xfee0_0000, 0xfff8_0000] {
        m.set(bar, base as u32);
        assert!(!m.answers(base), "{base:#x}");
    }
    let (b, _) = m.plug(false);
    assert!(m.answers(boot), "the room that the first one left is used");
    m.set(bar, boot as u32);
    m.set(bar, 0xd200_0000);
    assert!(m.answers(0xd200_0000) && m.answers(boot));
    drop(a);
    assert!(!m.answers(0xd200_0000));
    assert_eq!(m.get(config(1, 0)), u32::MAX);
    drop(b);
    assert!(!m.answers(boot));
    assert_eq!(m.plug(false).0.placed().slot, 1);
}

#[test]
fn two_bars_may_trade_places() {
    for off in [false, true] {
        let m = Machine::new(0);
        let (_a, _) = m.plug(true);
        let (_b, _) = m.plug(true);
        let base = |slot| u64::from(m.get(config(slot, regs::BAR0)) & !0xf) | 1 << 32;
        let (a, b) = (base(1), base(2));
        assert!(a > b && m.answers(a) && m.answers(b));
        let decode = |on: u32| (1..=2).for_each(|slot| m.set(config(slot, regs::COMMAND), on << 1));
        if off {
            decode(0);
        }
        m.set(config(1, regs::BAR0), b as u32);
        m.set(config(2, regs::BAR0), a as u32);
        if off {
            decode(1);
        }
        let bar = |slot| m.segment.function(slot).unwrap().bar(0);
        assert_eq!((bar(1), bar(2)), (Some(b), Some(a)));
        assert!(m.answers(a) && m.answers(b));
        // A 64-bit BAR may go below 4 GiB.
        m.set(config(1, regs::BAR0 + 4), 0);
        m.set(config(1, regs::BAR0), 0xc000_0000);
        assert!(m.answers(0xc000_0000) && !m.answers(b));
    }
}

#[test]
fn a_doorbell_is_placed_when_first_rung_and_follows_its_bar() {
    let m = Machine::new(0);
    let (a, _) = m.plug(false);
    let base = LOW.base + LOW.length - SIZE;
    assert!(m.bells.addresses().is_empty());
    m.write(base + BELL, &[0, 0]);
    assert_eq!(m.bells.addresses(), [base + BELL]);
    m.set(config(1, regs::BAR0), 0xd000_0000);
    assert_eq!(m.bells.addresses(), [0xd000_0000 + BELL]);
    m.set(config(1, regs::COMMAND), 0);
    assert!(m.bells.addresses().is_empty());
    m.set(config(1, regs::COMMAND), 2);
    assert!(m.bells.ring(0xd000_0000 + BELL));
    drop(a);
    assert!(m.bells.addresses().is_empty());
}
