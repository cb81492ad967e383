//! A producer's stream: pipelined batches in, acknowledgements out in the order of the batches.
//!
//! ```text
//! QUIC ─▶ frames ─▶ check (header, CRC, rights) ─▶ shard of the partition
//!                                                     │ answers, in any order between shards
//! QUIC ◀─ many acks a write ◀─ in order of tags ◀─────┘
//! ```
//! Reading stops while too much is unanswered: QUIC's flow control then holds the client. Batches are
//! never joined or copied here. Absent: offsets, sequences, filters (the shard).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use millstream_batch::ids::{Partition, ProducerEpoch, ProducerId, Sequence, TimestampMs, TopicId};
use millstream_batch::{Parts, check_produced_parts};
use millstream_machine::request::{self as machine, Produce, Reply};
use millstream_protocol::frame::encode_into;
use millstream_protocol::kinds::name_of;
use millstream_protocol::messages::{self, Ack, Produced, ProducerOpen, ProducerOpened};
use millstream_protocol::{Code, Frame, Kind};
use millstream_shard::call::{Answer, Call, Kept, RefusedRecord};
use millstream_shard::handle::{ReplyTo, Stamps};
use quinn::SendStream;
use rustc_hash::FxHashMap;
use tokio::sync::{Notify, mpsc};

use crate::authority::Right;
use crate::memory::Ingress;
use crate::metrics::Alive;
use crate::refusals;
use crate::session::Session;
use crate::stream::{FrameReader, ReadEnd, Received, refuse, write_frame};
use crate::traces::{Trace, Value, now_ns};
use crate::walk;

/// Acknowledgements are written out when so many bytes are ready, at the latest when no more are.
const ACKS_BYTES_MAX: usize = 16 << 10;

/// The memory that acknowledgements are written to, some dozens after each other, and what one of them takes.
const ACKS_BYTES: usize = 1 << 10;
const ACK_BYTES: usize = 64;

/// Serve the stream that PRODUCER_OPEN began.
pub(crate) async fn serve(
    session: Rc<Session>,
    mut send: SendStream,
    mut reader: FrameReader,
    first: Received,
) {
    let open = match open(&session, &first.frame) {
        Ok(open) => open,
        Err(error) => return refuse(&mut send, &mut reader, &error).await,
    };
    drop(first);
    let shared = std::sync::Arc::clone(&session.shared);
    let _alive = Alive::new(&shared.metrics.producers);
    let _producing = session.begin_producing();
    let in_flight_max = session.shared.config.limits.in_flight_max;
    let opened = ProducerOpened { in_flight_max };
    if write_frame(&mut send, Kind::ProducerOpened, &opened)
        .await
        .is_err()
    {
        return;
    }
    let (queue, answers) = mpsc::unbounded_channel();
    let stream = Stream {
        pid: ProducerId(open.pid),
        epoch: ProducerEpoch(open.epoch),
        silent: open.ack() == Ack::None,
        flight: RefCell::new(Flight {
            first_tag: 1,
            ..Flight::default()
        }),
        news: Notify::new(),
        room: Notify::new(),
        queue,
        last_topic: Cell::default(),
        told: RefCell::default(),
        session,
    };
    let (_, ()) = tokio::join!(
        stream.read(&mut reader),
        stream.acknowledge(&mut send, answers)
    );
}

fn open(session: &Session, frame: &Frame) -> Result<ProducerOpen, messages::Error> {
    let open: ProducerOpen = frame.message().map_err(refusals::of_frame)?;
    session.principal().check_somewhere(Right::Produce)?;
    if open.pid != 0 {
        session.check_producer(open.pid, &open.token)?;
    }
    match Ack::try_from(open.ack) {
        Ok(Ack::Durable | Ack::None) => Ok(open),
        Ok(Ack::Quorum) => {
            Err(Code::Unsupported.error("ack = quorum: this broker is not replicated"))
        }
        Err(_) => {
            Err(Code::Unsupported.error(format!("acknowledgement level {} is not known", open.ack)))
        }
    }
}

struct Stream {
    session: Rc<Session>,
    pid: ProducerId,
    epoch: ProducerEpoch,
    /// `ack = none`: failures are counted, nothing is answered.
    silent: bool,
    flight: RefCell<Flight>,
    /// For the writer: something was refused here, or reading is over.
    news: Notify,
    /// For the reader: there is room again.
    room: Notify,
    queue: mpsc::UnboundedSender<(u64, Answer)>,
    last_topic: Cell<Option<KnownTopic>>,
    /// The number of partitions of each topic, as an acknowledgement of this stream last said it.
    told: RefCell<FxHashMap<TopicId, u32>>,
}

/// A topic that this stream may produce to, looked up when the catalog changed.
#[derive(Clone, Copy)]
struct KnownTopic {
    id: TopicId,
    generation: u64,
}

/// A topic's number of partitions, which the client may not know.
#[derive(Clone, Copy)]
struct Grown {
    topic: TopicId,
    partitions: u32,
}

/// Batches unanswered, oldest first. The tag of a place is `first_tag` plus its index.
#[derive(Default)]
struct Flight {
    places: VecDeque<Place>,
    first_tag: u64,
    bytes: usize,
    /// No more will come; with an error that speaks of the whole stream.
    ended: Option<Option<messages::Error>>,
}

struct Place {
    outcome: Option<Outcome>,
    bytes: usize,
    /// Given back when the batch is answered, whether or not the client reads the answer.
    room: Option<Ingress>,
    trace: Option<Box<Traced>>,
    /// For its acknowledgement to say.
    grown: Option<Grown>,
}

/// A sampled batch: its trace, when it was sent to its shard, and what the shard notes.
struct Traced {
    trace: Trace,
    sent_ns: u64,
    stamps: Arc<Stamps>,
}

/// With what filters left of the batch, when that is less than was sent, or is not known.
type Outcome = Result<(machine::Produced, Left), messages::Error>;

enum Left {
    All,
    Some(Kept),
    Unknown,
}

impl Stream {
    /// Read until the end, whatever it is.
    async fn read(&self, reader: &mut FrameReader) {
        let stopping = self.session.shared.stopping();
        let end = tokio::select! {
            end = self.read_all(reader) => end,
            () = stopping => Some(Code::Stopping.error("the broker is stopping")),
        };
        if let Some(error) = &end {
            reader.stop(error.code);
        }
        self.flight.borrow_mut().ended = Some(end);
        self.news.notify_one();
    }

    async fn read_all(&self, reader: &mut FrameReader) -> Option<messages::Error> {
        loop {
            self.session.fit_window();
            match reader.next().await {
                Ok(Received { frame, room }) if frame.kind == Kind::Produce.number() => {
                    if let Err(error) = self.produce(frame, room).await {
                        return Some(error);
                    }
                }
                Ok(received) => {
                    let message =
                        format!("{} on a producer's stream", name_of(received.frame.kind));
                    return Some(Code::BadRequest.error(message));
                }
                Err(ReadEnd::Finished | ReadEnd::Gone) => return None,
                Err(ReadEnd::Refused(error)) => return Some(error),
            }
        }
    }

    /// Take one batch. An error ends the stream; what is wrong with the batch alone is its answer.
    async fn produce(&self, frame: Frame, room: Option<Ingress>) -> Result<(), messages::Error> {
        let header: messages::Produce = frame.message().map_err(refusals::of_frame)?;
        let bytes = frame.payload.len();
        self.wait_for_room(bytes).await;
        let metrics = &self.session.shared.metrics;
        metrics.batches_in.add(1);
        let trace = self.session.shared.traces.begin("produce");
        {
            let mut flight = self.flight.borrow_mut();
            let expected = flight.first_tag + flight.places.len() as u64;
            if header.tag != expected {
                let message = format!(
                    "tag {} where {expected} was due: tags begin at 1 and rise by one",
                    header.tag
                );
                return Err(Code::BadRequest.error(message));
            }
            flight.places.push_back(Place {
                outcome: None,
                bytes,
                room,
                trace: None,
                grown: None,
            });
            flight.bytes += bytes;
        }
        match self.check(&header, frame.payload.into_parts()).await {
            Ok((partition, call)) => {
                let stamps = trace.and_then(|trace| self.traced(&header, *trace, &call));
                let reply = ReplyTo::Queue {
                    tag: header.tag,
                    queue: self.queue.clone(),
                };
                let shard = self.session.shared.shards.of(partition);
                shard.send_stamped(call, reply, stamps);
            }
            Err(error) => {
                if let Some(trace) = trace {
                    self.session.shared.traces.end(*trace, Some(&error.message));
                }
                self.land(header.tag, Err(error));
                self.news.notify_one();
            }
        }
        Ok(())
    }

    /// Note a sampled batch in its place, before it goes to its shard.
    fn traced(
        &self,
        header: &messages::Produce,
        mut trace: Trace,
        call: &Call,
    ) -> Option<Arc<Stamps>> {
        if let Call::Produce { request, .. } = call {
            let topic = self.session.thread.catalog.cached(request.partition.topic);
            if let Some(topic) = topic {
                trace.set(
                    "messaging.destination.name",
                    Value::Text(topic.name.clone()),
                );
            }
            let partition = request.partition.index.to_string();
            trace.set("messaging.destination.partition.id", Value::Text(partition));
            trace.set(
                "messaging.batch.message_count",
                Value::Number(request.sent.into()),
            );
            trace.set(
                "messaging.message.body.size",
                Value::Number(request.bytes.into()),
            );
        }
        let sent_ns = now_ns();
        trace.part("check", trace.start_ns(), sent_ns);
        let stamps = Arc::new(Stamps::default());
        let mut flight = self.flight.borrow_mut();
        let at = header.tag.checked_sub(flight.first_tag)?;
        let place = flight.places.get_mut(usize::try_from(at).ok()?)?;
        place.trace = Some(Box::new(Traced {
            trace,
            sent_ns,
            stamps: Arc::clone(&stamps),
        }));
        Some(stamps)
    }

    async fn wait_for_room(&self, bytes: usize) {
        let limits = &self.session.shared.config.limits;
        let full = || {
            let flight = self.flight.borrow();
            flight.places.len() >= limits.in_flight_max as usize
                || (flight.bytes + bytes > limits.in_flight_bytes_max && !flight.places.is_empty())
        };
        while full() {
            self.room.notified().await;
        }
    }

    async fn check(
        &self,
        header: &messages::Produce,
        raw: Parts,
    ) -> Result<(Partition, Call), messages::Error> {
        let topic = self.topic(header).await?;
        let partition = Partition {
            topic,
            index: header.partition,
        };
        let batch =
            check_produced_parts(&raw).map_err(|error| Code::BadBatch.error(error.to_string()))?;
        let bytes_max = self.session.shared.config.log.batch_bytes();
        if batch.size() > bytes_max {
            let message = format!(
                "batch of {} bytes is over this broker's {bytes_max}",
                batch.size()
            );
            return Err(Code::BatchTooLarge.error(message));
        }
        let raw = walk::compressed(&self.session.thread, topic, &batch, raw).await?;
        let request = Produce {
            partition,
            pid: self.pid,
            epoch: self.epoch,
            sequence: Sequence(header.sequence),
            sent: batch.records,
            kept: batch.records,
            bytes: batch.size() as u32,
            max_timestamp: TimestampMs(batch.max_timestamp),
        };
        Ok((partition, Call::Produce { request, raw }))
    }

    /// The topic, if it is there and the principal may produce to it. If this stream has not said its number
    /// of partitions yet, the acknowledgement of this batch does.
    async fn topic(&self, header: &messages::Produce) -> Result<TopicId, messages::Error> {
        let id = TopicId(
            (&*header.topic_id)
                .try_into()
                .map_err(|_| Code::BadRequest.error("a topic id has 16 bytes"))?,
        );
        let catalog = &self.session.thread.catalog;
        let generation = catalog.generation();
        let known = |last: &KnownTopic| last.id == id && last.generation == generation;
        if self.last_topic.get().as_ref().is_some_and(known) {
            return Ok(id);
        }
        let topic = catalog.topic_by_id(id).await?;
        self.session
            .principal()
            .check(Right::Produce, &topic.name)?;
        self.last_topic.set(Some(KnownTopic {
            id,
            generation: catalog.generation(),
        }));
        let partitions = topic.partitions;
        let told = self.told.borrow_mut().insert(id, partitions);
        if told != Some(partitions) && !self.silent {
            let mut flight = self.flight.borrow_mut();
            let at = header.tag.checked_sub(flight.first_tag);
            let at = at.and_then(|at| usize::try_from(at).ok());
            if let Some(place) = at.and_then(|at| flight.places.get_mut(at)) {
                place.grown = Some(Grown {
                    topic: id,
                    partitions,
                });
            }
        }
        Ok(id)
    }

    /// The batch that was to say it is refused: the next one does.
    fn not_told(&self, grown: Grown) {
        self.told.borrow_mut().remove(&grown.topic);
        self.last_topic.set(None);
    }

    fn land(&self, tag: u64, outcome: Outcome) {
        let mut flight = self.flight.borrow_mut();
        let at = tag
            .checked_sub(flight.first_tag)
            .and_then(|at| usize::try_from(at).ok());
        if let Some(place) = at.and_then(|at| flight.places.get_mut(at)) {
            if let Some(traced) = place.trace.take() {
                let Traced {
                    mut trace,
                    sent_ns,
                    stamps,
                } = *traced;
                trace.shard_parts(sent_ns, &stamps);
                let error = outcome.as_ref().err().map(|error| error.message.as_str());
                self.session.shared.traces.end(trace, error);
            }
            place.outcome = Some(outcome);
            place.room = None;
            let bytes = std::mem::take(&mut place.bytes);
            flight.bytes -= bytes;
        }
    }

    /// Write answers in order until reading is over and all are answered.
    async fn acknowledge(
        &self,
        send: &mut SendStream,
        mut answers: mpsc::UnboundedReceiver<(u64, Answer)>,
    ) {
        let mut out = BytesMut::new();
        let mut gone = false;
        loop {
            if out.capacity() < ACK_BYTES {
                out.reserve(ACKS_BYTES);
            }
            self.gather(&mut out);
            self.room.notify_one();
            if !out.is_empty() {
                if !gone {
                    let acks = out.split().freeze();
                    // A client that does not read its answers must not keep the room of its batches.
                    let mut writing = std::pin::pin!(send.write_chunk(acks));
                    let written = loop {
                        tokio::select! {
                            written = &mut writing => break written,
                            Some((tag, answer)) = answers.recv() => {
                                self.land(tag, outcome(answer));
                                self.room.notify_one();
                            }
                        }
                    };
                    gone = written.is_err(); // nobody to tell; what is under way still lands
                }
                out.clear();
                continue;
            }
            let ended = {
                let mut flight = self.flight.borrow_mut();
                if flight.places.is_empty() {
                    flight.ended.take()
                } else {
                    None
                }
            };
            if let Some(error) = ended {
                if let Some(error) = error
                    && !gone
                {
                    encode_into(&mut out, Kind::Error, &error);
                    drop(send.write_chunk(out.split().freeze()).await); // the stream ends in any case
                }
                drop(send.finish()); // a peer that went away needs no end
                return;
            }
            tokio::select! {
                answer = answers.recv() => {
                    if let Some((tag, answer)) = answer {
                        self.land(tag, outcome(answer));
                    }
                    while let Ok((tag, answer)) = answers.try_recv() {
                        self.land(tag, outcome(answer));
                    }
                }
                () = self.news.notified() => {}
            }
        }
    }

    /// Take answered places from the front and encode their answers.
    fn gather(&self, out: &mut BytesMut) {
        let metrics = &self.session.shared.metrics;
        let mut flight = self.flight.borrow_mut();
        while out.len() < ACKS_BYTES_MAX
            && let Some(Place {
                outcome: Some(_), ..
            }) = flight.places.front()
        {
            let Some(Place {
                outcome: Some(outcome),
                grown,
                ..
            }) = flight.places.pop_front()
            else {
                break;
            };
            let tag = flight.first_tag;
            flight.first_tag += 1;
            match outcome {
                Err(_) if self.silent => metrics.batches_lost.add(1),
                Ok((
                    _,
                    Left::Some(Kept {
                        refused: Some(_), ..
                    }),
                )) if self.silent => {
                    metrics.batches_lost.add(1);
                }
                Ok(_) if self.silent => {}
                Ok((produced, left)) => {
                    let mut answer = answer(tag, &produced, left);
                    answer.partitions = grown.map(|grown| grown.partitions);
                    encode_into(out, Kind::Produced, &answer);
                }
                Err(error) => {
                    if let Some(grown) = grown {
                        self.not_told(grown);
                    }
                    metrics.batches_refused.add(error.code);
                    encode_into(out, Kind::Error, &messages::Error { tag, ..error });
                }
            }
        }
    }
}

fn outcome(answer: Answer) -> Outcome {
    match answer {
        Answer::Reply(Reply::Produced(produced)) => Ok((produced, Left::All)),
        Answer::Filtered { produced, kept } => {
            Ok((produced, kept.map_or(Left::Unknown, Left::Some)))
        }
        other => Err(refusals::unexpected(&other)),
    }
}

fn answer(tag: u64, produced: &machine::Produced, left: Left) -> Produced {
    let mut answer = Produced {
        tag,
        base_offset: produced.base_offset.map(|offset| offset.0),
        append_time_ms: produced.append_time.0,
        duplicate: produced.duplicate,
        refused_unknown: matches!(left, Left::Unknown),
        ..Produced::default()
    };
    if let Left::Some(kept) = left {
        answer.kept = Some(kept.records);
        answer.kept_map = kept.map.unwrap_or_default();
        if let Some(refused) = kept.refused {
            answer.refused = refused.records;
            answer.refused_map = refused.map.unwrap_or_default();
            let told = |reason: RefusedRecord| messages::RefusedRecord {
                record: reason.record,
                filter: reason.filter,
                message: reason.message,
            };
            answer.refusals = refused.reasons.into_iter().map(told).collect();
        }
    }
    answer
}
