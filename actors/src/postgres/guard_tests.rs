use super::*;

const BOUNDS: Bounds = Bounds { message_bytes_max: 1 << 20, clear_password: false };

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

/// What goes through, where it comes in pieces of this size.
fn passed(bytes: &[u8], piece: usize) -> Result<Vec<u8>, Excess> {
    let mut frames = Frames::new(BOUNDS);
    let mut passed = vec![];
    for piece in bytes.chunks(piece) {
        let mut piece = piece.to_vec();
        let kept = frames.pass(&mut piece)?;
        passed.extend_from_slice(&piece[..kept]);
    }
    Ok(passed)
}

/// However the bytes come, the driver gets all that it needs in its order, and nothing of what nobody listens to.
#[test]
fn talk_is_left_out_and_everything_else_passes() {
    let [log_in, report, notice, row, end] = [
        message(b'R', &[0, 0, 0, 0]),
        message(b'S', b"TimeZone\0UTC\0"),
        message(b'N', &[b'x'; 3000]),
        message(b'D', &[7; 5000]),
        message(b'Z', b"I"),
    ];
    let empty = message(b'1', b"");
    let said =
        [&log_in, &report, &end, &empty, &notice, &row, &notice, &row, &end, &report].map(Vec::as_slice);
    let heard = [&log_in, &end, &empty, &row, &row, &end].map(Vec::as_slice).concat();
    for piece in [1, 2, 3, 5, 7, 64, 1000, 4096, 100_000] {
        assert!(passed(&said.concat(), piece).unwrap() == heard, "in pieces of {piece}");
    }
}

/// A length is judged when it is read, before anything is waited for; so is the demand of a password in the clear.
#[test]
fn the_beginning_of_a_message_is_enough() {
    let length = |length: i32| [&b"D"[..], &length.to_be_bytes()].concat();
    for (said, excess) in [
        (length(0), Excess::Length(0)),
        (length(3), Excess::Length(3)),
        (length(-1), Excess::Length(-1)),
        (length(i32::MIN), Excess::Length(i32::MIN)),
        (length(i32::MAX), Excess::Message { kind: Kind(b'D'), bytes: 0x7fff_ffff, max: 1 << 20 }),
        (length((1 << 20) + 1), Excess::Message { kind: Kind(b'D'), bytes: (1 << 20) + 1, max: 1 << 20 }),
        (message(b'R', &[0, 0, 0, 3]), Excess::ClearPassword),
    ] {
        assert_eq!(passed(&said, 1), Err(excess));
    }
    assert_eq!(passed(&length(1 << 20), 1).unwrap(), length(1 << 20));
}

/// Rows, and words besides them, are counted until an answer is complete, and then anew.
#[test]
fn an_answer_has_an_end() {
    let row = message(b'D', &[0; 1000]);
    let fits = usize::try_from(ANSWER_BYTES_MAX / (1004 + ROW_OVERHEAD)).unwrap();
    let answer = [row.repeat(fits), message(b'Z', b"I")].concat();
    assert!(passed(&answer.repeat(2), 1 << 16).is_ok());
    assert_eq!(passed(&row.repeat(fits + 1), 1 << 16), Err(Excess::Answer));
    let notice = message(b'N', &[0; 100_000]);
    let fits = usize::try_from(TALK_BYTES_MAX / (100_004 + MESSAGE_OVERHEAD)).unwrap();
    assert!(passed(&notice.repeat(fits), 1 << 16).unwrap().is_empty());
    assert_eq!(passed(&notice.repeat(fits + 1), 1 << 16), Err(Excess::Talk));
}
