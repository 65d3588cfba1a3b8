//! A device that misbehaves, as the test servers of Modbus libraries do, on a
//! real connection: each answer that is wrong is an error of its kind, and the
//! next one is right.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use tokio::net::TcpStream;

use super::*;
use crate::units::Span;

/// Which address of a register provokes what.
const RIGHT: u16 = 0;
const OTHER_TRANSACTION: u16 = 1;
const OTHER_UNIT: u16 = 2;
const TOO_SHORT: u16 = 3;
const TOO_LONG: u16 = 4;
const BYTE_BY_BYTE: u16 = 5;
const HALF_A_SECOND_LATE: u16 = 6;
const EXCEPTION: u16 = 7;
const CLOSES: u16 = 8;
const RUBBISH: u16 = 9;
const OTHER_FUNCTION: u16 = 10;

/// Answers a request for two registers; false when the connection is to be closed.
async fn answer(stream: &mut TcpStream, request: [u8; 12]) -> bool {
    let [t1, t2, _, _, _, _, unit, function, a1, a2, _, _] = request;
    let address = u16::from_be_bytes([a1, a2]);
    let mut frame = vec![t1, t2, 0, 0, 0, 7, unit, function, 4, a1, a2, 0x12, 0x34];
    match address {
        OTHER_TRANSACTION => frame[1] ^= 1,
        OTHER_UNIT => frame[6] ^= 1,
        TOO_SHORT => {
            frame.truncate(11);
            (frame[5], frame[8]) = (5, 2);
        }
        // More bytes than it says, which the next answer must not suffer from.
        TOO_LONG => frame.extend([0xaa; 9]),
        EXCEPTION => frame = vec![t1, t2, 0, 0, 0, 3, unit, function | 0x80, 6],
        RUBBISH => frame = vec![0xff; 40],
        OTHER_FUNCTION => frame[7] = 4,
        CLOSES => return false,
        HALF_A_SECOND_LATE => tokio::time::sleep(Duration::from_millis(500)).await,
        _ => {}
    }
    if address == BYTE_BY_BYTE {
        for byte in frame {
            stream.write_all(&[byte]).await.unwrap_or_default();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        return true;
    }
    stream.write_all(&frame).await.is_ok()
}

async fn device() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 12];
                while stream.read_exact(&mut request).await.is_ok() && answer(&mut stream, request).await {}
            });
        }
    });
    port
}

async fn read(line: &BusHandle, address: u16, timeout_ms: u64) -> Result<Response, BusError> {
    let manner = Manner { timeout: Some(Duration::from_millis(timeout_ms)), is_urgent: false };
    line.transact(1, Request::ReadHoldingRegisters(address, 2), manner).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_misbehaviour_is_an_error_of_its_kind_and_the_next_answer_is_right() {
    let port = device().await;
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    // Long enough for a machine that does much else.
    let timeout = Span(Duration::from_secs(5));
    let line = open_tcp("b", &ModbusTcp { address, timeout, gap: None });
    let line = line.of(&DeviceId::new("d"));
    let right = |address: u16| Ok(Response::ReadHoldingRegisters(vec![address, 0x1234]));
    let is_invalid = |result: &Result<Response, BusError>| matches!(result, Err(BusError::InvalidResponse(_)));
    for (misbehaviour, is_expected) in [
        (OTHER_TRANSACTION, &is_invalid as &dyn Fn(&Result<Response, BusError>) -> bool),
        (OTHER_UNIT, &is_invalid),
        (OTHER_FUNCTION, &is_invalid),
        // The count is compared with what a driver has asked for by `sandbox/modbus.rs`.
        (TOO_SHORT, &|result| *result == Ok(Response::ReadHoldingRegisters(vec![TOO_SHORT]))),
        (TOO_LONG, &|result| *result == right(TOO_LONG)),
        (BYTE_BY_BYTE, &|result| *result == right(BYTE_BY_BYTE)),
        (HALF_A_SECOND_LATE, &|result| *result == right(HALF_A_SECOND_LATE)),
        (EXCEPTION, &|result| *result == Err(BusError::Exception(6))),
        (CLOSES, &|result| matches!(result, Err(BusError::Unavailable(_)))),
        (RUBBISH, &|result| result.is_err()),
    ] {
        let result = read(&line, misbehaviour, 5000).await;
        assert!(is_expected(&result), "{misbehaviour}: {result:?}");
        // One that has lost its way is connected to anew, and may cost one answer more.
        let mut next = read(&line, RIGHT, 5000).await;
        if next.is_err() {
            next = read(&line, RIGHT, 5000).await;
        }
        assert_eq!(next, right(RIGHT), "after {misbehaviour}");
    }
    // One that comes late is not taken for the next one's.
    for _ in 0..2 {
        assert_eq!(read(&line, HALF_A_SECOND_LATE, 100).await, Err(BusError::TimedOut));
        assert_eq!(read(&line, RIGHT, 5000).await, right(RIGHT));
    }
}
