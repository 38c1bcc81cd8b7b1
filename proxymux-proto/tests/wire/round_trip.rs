//! Everything that is sent arrives as it was meant.

use proptest::prelude::*;
use proxymux_proto::{
    AbortCode, Chunk, ChunkDecoder, ChunkHeader, ControlMessage, MAX_CHUNK_LEN, NodeName,
    OpenAnswer, OpenRequest, TargetAddr,
};

use crate::{
    arbitrary::{abort_code, control_message, node_name, open_answer, open_request, target},
    raw::content,
};

proptest! {
    #[test]
    fn a_control_message_arrives_as_it_was_sent(message in control_message()) {
        let frame = message.encode().unwrap();
        let arrived = ControlMessage::decode(&content(&frame)).unwrap();
        prop_assert_eq!(arrived, message);
    }

    #[test]
    fn an_open_request_arrives_as_it_was_sent(request in open_request()) {
        let frame = request.encode().unwrap();
        let arrived = OpenRequest::decode(&content(&frame)).unwrap();
        prop_assert_eq!(arrived, request);
    }

    #[test]
    fn an_open_answer_arrives_as_it_was_sent(answer in open_answer()) {
        let frame = answer.encode().unwrap();
        let arrived = OpenAnswer::decode(&content(&frame)).unwrap();
        prop_assert_eq!(arrived, answer);
    }

    #[test]
    fn a_data_header_says_its_length(len in 1..=MAX_CHUNK_LEN) {
        let header = ChunkHeader::data(len).unwrap();
        prop_assert_eq!(decode_chunk(header), Chunk::Data(len));
    }

    #[test]
    fn an_aborted_header_says_its_code(code in abort_code()) {
        let header = ChunkHeader::aborted(code);
        prop_assert_eq!(decode_chunk(header), Chunk::Aborted(code));
    }

    #[test]
    fn a_target_reads_back_from_its_text(target in target()) {
        let read: TargetAddr = target.to_string().parse().unwrap();
        prop_assert_eq!(read, target);
    }

    #[test]
    fn a_node_name_reads_back_from_its_text(name in node_name()) {
        prop_assert_eq!(NodeName::parse(name.as_str()).unwrap(), name);
    }
}

#[test]
fn an_end_header_is_an_end() {
    assert_eq!(decode_chunk(ChunkHeader::end()), Chunk::End);
}

#[test]
fn a_data_header_of_no_or_too_many_bytes_cannot_be_made() {
    assert_eq!(ChunkHeader::data(0), None);
    assert_eq!(ChunkHeader::data(MAX_CHUNK_LEN + 1), None);
    assert_eq!(ChunkHeader::data(usize::MAX), None);
}

#[test]
fn every_abort_code_has_one_number_in_chunks_and_in_messages() {
    for number in 0..=u8::MAX {
        let code = AbortCode::from_wire(number);
        let message = ControlMessage::Abort { stream: 2, code };

        let arrived = ControlMessage::decode(&content(&message.encode().unwrap())).unwrap();

        assert_eq!(code.to_wire(), number);
        assert_eq!(arrived, message);
        assert_eq!(
            decode_chunk(ChunkHeader::aborted(code)),
            Chunk::Aborted(code)
        );
    }
}

fn decode_chunk(header: ChunkHeader) -> Chunk {
    let mut input = &header.as_bytes()[..];
    let chunk = ChunkDecoder::default().decode(&mut input).unwrap().unwrap();
    assert!(input.is_empty());
    chunk
}
