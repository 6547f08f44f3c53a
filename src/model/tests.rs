//! What the tests of all dialects share, and tests against servers that others wrote.

mod classes;
mod mocks;
pub(in crate::model) mod recordings;
pub(in crate::model) mod server;

use futures::{StreamExt, stream::BoxStream};

use super::{Chunk, Error, Reply};

/// Collects an answer, its pieces of text and its end; checks what every stream of chunks promises.
pub(in crate::model) async fn collect(
    answer: Result<BoxStream<'static, Result<Chunk, Error>>, Error>,
) -> (Vec<String>, Result<Reply, Error>) {
    let mut stream = match answer {
        Ok(stream) => stream,
        Err(error) => return (Vec::new(), Err(error)),
    };
    let (mut pieces, mut is_first) = (Vec::new(), true);
    let outcome = loop {
        match stream.next().await.expect("a stream ends with Done or an error") {
            Ok(Chunk::Begun) => assert!(is_first, "something came before the beginning"),
            Ok(Chunk::Text(text)) => pieces.push(text),
            Ok(Chunk::Done(reply)) => break Ok(*reply),
            Err(error) => break Err(error),
        }
        is_first = false;
    };
    assert!(stream.next().await.is_none(), "something came after the end");
    if let Ok(reply) = &outcome {
        assert_eq!(reply.text, pieces.concat());
    }
    (pieces, outcome)
}
