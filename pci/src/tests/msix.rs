//! Vectors, their table and pending bits, and what becomes of signals meanwhile.

use super::*;

#[test]
fn a_masked_vector_stays_pending_and_fires_once_when_unmasked() {
    let m = Machine::new(0);
    let (_a, vectors) = m.plug(false);
    let base = LOW.base + LOW.length - SIZE;
    let control = msix_control(&m);
    let message = |data| MsiMessage { address: 0xfee0_0000, data };
    let pending = || m.get(base + PENDING);
    // Before anything is set up: pending, and no source exists.
    vectors[1].signal();
    assert_eq!((pending(), m.msi.made()), (0b10, 0));
    m.write(control, &0xc000u16.to_le_bytes());
    set_vector(&m, base, 1, 0x41, false);
    assert_eq!((pending(), m.msi.made()), (0b10, 0));
    // Function unmasked: delivered once.
    m.write(control, &0x8000u16.to_le_bytes());
    assert_eq!(m.msi.take(), [message(0x41)]);
    assert_eq!((pending(), m.msi.made()), (0, 1));
    vectors[1].signal();
    assert_eq!(m.msi.take(), [message(0x41)]);
    // Masked by itself, signalled twice, given another message.
    m.set(base + TABLE + 16 + 12, 1);
    vectors[1].signal();
    vectors[1].signal();
    assert_eq!((m.msi.take().len(), pending()), (0, 0b10));
    m.set(base + TABLE + 16 + 8, 0x42);
    m.set(base + TABLE + 16 + 12, 0);
    assert_eq!((m.msi.take(), pending()), (vec![message(0x42)], 0));
    // Switched off.
    m.write(control, &0u16.to_le_bytes());
    vectors[1].signal();
    vectors[2].signal();
    assert_eq!((m.msi.take().len(), pending()), (0, 0b110));
    // Pending bits are not the guest's to write.
    m.set(base + PENDING, 0);
    assert_eq!(pending(), 0b110);
}

#[test]
fn signals_are_not_lost_against_masking_on_another_thread() {
    let msi = Arc::new(FakeMsi::default());
    let need = MsixNeed { vectors: 1, bar: 0, table: 0, pending: 0x800 };
    for _ in 0..50 {
        let msix = Arc::new(Msix::new(need, msi.clone()));
        msix.control(0x8000);
        let vector = msix.vectors().remove(0);
        let signaller =
            std::thread::Builder::new().name("signaller".into()).spawn(move || vector.signal()).unwrap();
        for round in 0..20u8 {
            msix.write_table(12, &[round & 1, 0, 0, 0]);
        }
        signaller.join().unwrap();
        msix.write_table(12, &[0; 4]);
        assert_eq!(msi.take().len(), 1);
    }
}

#[test]
fn a_direct_user_of_a_route_is_masked_like_the_device() {
    let msi = Arc::new(FakeMsi::default());
    let msix = Msix::new(MsixNeed { vectors: 2, bar: 0, table: 0, pending: 0x800 }, msi.clone());
    let route = msix.route(1).unwrap();
    assert!(msix.route(2).is_err());
    route.signal().unwrap();
    let mut pending = [0];
    msix.read_pending(0, &mut pending);
    assert_eq!((pending, msi.take().len()), ([0b10], 0));
    msix.write_table(16 + 12, &[0; 4]);
    msix.control(0x8000);
    assert_eq!(msi.take().len(), 1);
    assert_eq!(msi.made(), 1);
}

#[test]
fn table_pending_bits_and_registers_survive_every_access() {
    let m = Machine::new(0);
    let (_a, _) = m.plug(false);
    let base = LOW.base + LOW.length - SIZE;
    let control = msix_control(&m);
    for state in [0u16, 0x8000, 0xc000] {
        m.write(control, &state.to_le_bytes());
        for edge in [0, TABLE, TABLE + 16 * u64::from(VECTORS), PENDING, PENDING + 8, SIZE] {
            for at in (base + edge).saturating_sub(40).max(base)..base + edge + 40 {
                for width in 1..=8 {
                    m.write(at, &[0xa5; 8][..width]);
                    m.memory.read(at, &mut [0; 8][..width]);
                }
            }
        }
    }
    // One access that covers the end of the table and the device behind it.
    let end = base + TABLE + 16 * u64::from(VECTORS);
    m.write(end - 4, &[1, 2, 3, 4]);
    let mut data = [0; 8];
    m.memory.read(end - 4, &mut data);
    assert_eq!(data, [1, 2, 3, 4, 0x30, 0x31, 0x32, 0x33]);
}
