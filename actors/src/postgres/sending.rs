//! A round on its way: its statements are sent one behind the other, and nobody waits for an answer in between.
//!
//! ```text
//! open_round ─▶ BEGIN, fence
//! send       ─▶ locks, check, stamps and rows   for each part of the round, while the server is at work on those before it
//! judge      ─▶ constraints, echo, conflicts;  ◀─ every answer       ─▶ `conclude`: COMMIT, or whatever it takes
//!            └▶ constraints, echo or nothing, COMMIT;  ◀─ every answer
//! ```
//!
//! The server carries the statements out one after the other, so each check sees what committed before its locks. Behind
//! one that fails the others fail for that reason alone (where it was the BEGIN itself, that was cancelled, there is no
//! transaction that could fail: then they find no rows, see `IN_ROUND`), so the first error is the one that counts; behind a fence that
//! finds another session's mark everything fails. The echo's answer also says whether the tables are those that were prepared:
//! a column that got another type meanwhile would round in silence what was encoded for the old one.
//!
//! A round of nothing but new rows, for tables that store what they are sent, needs nobody here to look at its answers before it is
//! committed: each of its statements inserts all of its rows or fails, and the echo fails where anything else was caused, or where a
//! table has got a trigger or a rule since that may swallow some. So its COMMIT goes behind them, which spares a round trip; of a
//! transaction that failed it is the end without effect.

use std::collections::BTreeSet;
use std::pin::Pin;

use super::*;

/// What the answers to a round's statements came to: what was taken and whether that caused more than was sent; nothing
/// when somebody else's changes are in the way, or it did not go as sent, so that none of this may be committed.
pub struct Judged {
    pub(super) found: std::result::Result<Option<(Taken, bool)>, Trouble>,
    /// The round has taken effect already.
    pub(super) committed: bool,
}

impl fmt::Debug for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judged").field("good", &matches!(self.found, Ok(Some(_)))).finish_non_exhaustive()
    }
}

/// A round's transaction, begun. Where it is dropped before it is judged, [`CloudSession::give_up_round`] has to follow.
pub struct OpenRound<'s> {
    session: &'s CloudSession,
    frame: RoundFrame<'s>,
    requests: Vec<(Step, Request<'s>)>,
    parts: Vec<Arc<Part>>,
    /// What kept a part from being sent.
    unsent: Option<Trouble>,
    /// Rows have to make room for others first: this goes step by step.
    in_steps: bool,
}

impl fmt::Debug for OpenRound<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenRound").field("parts", &self.parts.len()).finish_non_exhaustive()
    }
}

/// A statement that was sent.
enum Request<'s> {
    Under(Pin<Box<dyn Future<Output = Answered> + Send + 's>>),
    Answered(Answered),
}

/// Rows that were sent together, with what is done about them in which order.
struct Part {
    items: Arc<Vec<RoundItem>>,
    order: Vec<usize>,
    /// By table: the rows that the cloud should have.
    known: Vec<(usize, Vec<usize>)>,
    /// Where it is heavy.
    patience: Option<Patience>,
}

/// One statement about a part.
#[derive(Clone)]
enum Piece {
    Lock(usize),
    Touched(usize),
    Stamps(std::ops::Range<usize>),
    Set(std::ops::Range<usize>),
}

/// Why a round that was sent comes to nothing.
enum Ended {
    Trouble(Trouble),
    /// A row that should be new is there, perhaps.
    AlreadyThere,
    /// It caused something else than it sent, or its tables are not as prepared: its COMMIT, which was on its way, had no effect.
    NotAsSent,
}

impl Part {
    fn new(items: Arc<Vec<RoundItem>>, statement_timeout: Duration) -> Self {
        let patience = Patience::with(&items, statement_timeout);
        let known = by_table(&items, (0..items.len()).filter(|at| items[*at].op != Op::Insert));
        Self { order: in_order(&items, |_| true), known: known.into_iter().collect(), items, patience }
    }

    fn known<'a>(&'a self, frame: RoundFrame<'a>, at: usize) -> Known<'a> {
        let (table, members) = &self.known[at];
        Known { table: &frame.tables[*table], items: &self.items, members }
    }

    fn set<'a>(&'a self, frame: RoundFrame<'a>, range: std::ops::Range<usize>) -> Set<'a> {
        Set::new(frame, &self.items, &self.order[range], true)
    }

    /// The places of the sets in the order.
    fn sets(&self) -> Vec<std::ops::Range<usize>> {
        let mut from = 0;
        let mut sets = vec![];
        for members in same_kind(&self.items, &self.order) {
            let range = from..from + members.len();
            from = range.end;
            if self.items[members[0]].op != Op::Update(vec![]) {
                sets.push(range);
            }
        }
        sets
    }

    /// All statements about these rows: locks in one order, then the checks, then what happens.
    fn pieces(&self, frame: RoundFrame<'_>) -> Vec<(String, Step, Piece)> {
        let tables = 0..self.known.len();
        let locks = tables.clone().map(|at| (self.known(frame, at).lock(), Step::Rows, Piece::Lock(at)));
        let checks = tables.map(|at| (self.known(frame, at).touched(), Step::Ours, Piece::Touched(at)));
        let sets = self.sets().into_iter().flat_map(|range| {
            let set = self.set(frame, range.clone());
            let step = if set.granted { Step::NewRows } else { Step::Rows };
            [
                (STAMPS.to_owned(), Step::Ours, Piece::Stamps(range.clone())),
                (set.sql, step, Piece::Set(range)),
            ]
        });
        locks.chain(checks).chain(sets).collect()
    }
}

impl CloudSession {
    /// Begins a round's transaction, and waits for nothing but the preparation of what this connection does not know yet.
    ///
    /// # Errors
    /// When the link, or the server, fails.
    pub async fn open_round<'s>(&'s self, frame: RoundFrame<'s>) -> Result<OpenRound<'s>> {
        let begin = begin(&self.client, frame)?;
        let fence = Fence::of(frame)?;
        let prepared = [FENCE, ECHO, CONFLICTS, STAMPS].map(|sql| self.client.statement(sql));
        let prepared = self
            .bounded(async {
                futures_util::future::try_join_all(prepared).await.map_err(self.failed(Phase::Setup, ""))
            })
            .await?;
        let mut open = OpenRound {
            session: self,
            frame,
            requests: vec![],
            parts: vec![],
            unsent: None,
            in_steps: false,
        };
        self.client.set_open(true);
        open.request(Step::Ours, async move {
            self.client.batch_execute(&begin).await.map(|()| Answer::default())
        });
        let statement = prepared.into_iter().next().ok_or_else(|| unexpected("no statement"))?;
        open.request(Step::Fence, async move { self.client.ask(&statement, &fence.params()).await });
        Ok(open)
    }
}

impl CloudSession {
    /// Ends a round that was begun and is not going to be judged: nothing of it took effect.
    ///
    /// # Errors
    /// When the link, or the server, fails.
    pub async fn give_up_round(&self) -> Result<()> {
        self.rollback(Phase::Pull).await
    }
}

impl<'s> OpenRound<'s> {
    /// Sends it. What follows is sent behind it.
    fn request(&mut self, step: Step, work: impl Future<Output = Answered> + Send + 's) {
        let mut work: Pin<Box<dyn Future<Output = Answered> + Send + 's>> = Box::pin(work);
        // The driver sends with the first poll; nobody has to be woken for it.
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let request = match work.as_mut().poll(&mut context) {
            std::task::Poll::Ready(answered) => Request::Answered(answered),
            std::task::Poll::Pending => Request::Under(work),
        };
        self.requests.push((step, request));
    }

    fn batch(&mut self, sql: String) {
        let session = self.session;
        self.request(Step::Ours, async move {
            session.client.batch_execute(&sql).await.map(|()| Answer::default())
        });
    }

    fn is_sound(&self) -> bool {
        self.unsent.is_none() && !self.in_steps
    }

    /// Sends the next rows of the round. What is wrong with them, the judgement says.
    pub async fn send(&mut self, items: Arc<Vec<RoundItem>>) {
        if !self.is_sound() {
            return;
        }
        let (session, frame) = (self.session, self.frame);
        let part = Arc::new(Part::new(items, session.cloud.options.statement_timeout));
        if !asides(frame, &part.items, &part.order).is_empty() {
            self.in_steps = true;
            return;
        }
        let pieces = part.pieces(frame);
        // What is new to this connection is prepared first, together.
        let prepared = pieces.iter().map(|(sql, ..)| session.client.statement(sql));
        let prepared = match session.attempt(futures_util::future::try_join_all(prepared)).await {
            Ok(prepared) => prepared,
            Err(trouble) => {
                self.unsent = Some(trouble);
                return;
            }
        };
        self.parts.push(part.clone());
        if let Some(patience) = &part.patience {
            self.batch(patience.begin.clone());
        }
        for (statement, (_, step, piece)) in prepared.into_iter().zip(pieces) {
            let part = part.clone();
            self.request(step, async move {
                match piece {
                    Piece::Lock(at) => {
                        let keys = part.known(frame, at).keys();
                        session.client.ask(&statement, &as_params(&keys)).await
                    }
                    Piece::Touched(at) => {
                        let known = part.known(frame, at);
                        let (keys, seen) = (known.keys(), known.seen());
                        let mut params = as_params(&keys);
                        params.extend([&seen as &dyn Param, &frame.cursor.xid, &frame.cursor.id]);
                        params.push(&frame.device);
                        session.client.ask(&statement, &params).await
                    }
                    Piece::Stamps(range) => {
                        let members = part.order[range].iter();
                        let stamps = Stamps::of(members.map(|at| &part.items[*at]));
                        session.client.ask(&statement, &stamps.params()).await
                    }
                    Piece::Set(range) => {
                        let arrays = part.set(frame, range).arrays();
                        session.client.ask(&statement, &as_params(&arrays)).await
                    }
                }
            });
        }
        if let Some(patience) = &part.patience {
            self.batch(patience.end.clone());
        }
    }

    /// Sends what ends a round, but for its COMMIT where the answers decide about that, reads every answer, and judges them.
    pub async fn judge(mut self, conflicts: &[ConflictRow]) -> Judged {
        let session = self.session;
        let sound = self.is_sound();
        let at_once = sound && conflicts.is_empty() && self.decides_itself();
        // How many rows a deletion finds is not known before its answer.
        let early_echo = self.parts.iter().all(|part| part.items.iter().all(|item| item.op != Op::Delete));
        if sound {
            self.request(Step::Rows, async move {
                let all = session.client.batch_execute("SET CONSTRAINTS ALL IMMEDIATE").await;
                all.map(|()| Answer::default())
            });
            if early_echo {
                self.ask_for_echo(at_once);
            }
            if at_once {
                fail::fail_point!("cloud.commit");
                self.batch("COMMIT".to_owned());
            }
            if !conflicts.is_empty() {
                let conflicts = conflicts.to_vec();
                let device = parse_uuid(self.frame.device);
                self.request(Step::Ours, async move {
                    let arrays = conflict_arrays(&conflicts);
                    let device = device.unwrap_or_default();
                    session.client.carry_out(CONFLICTS, &conflict_params(&device, &arrays)).await
                });
            }
        }
        let found = self.read(early_echo).await;
        let committed = at_once && matches!(found, Ok(Some(_)));
        if committed {
            session.client.set_open(false);
        }
        Judged { found, committed }
    }

    /// Asks what was caused. With `or_nothing`, nothing of the round takes effect unless that is exactly what was sent.
    fn ask_for_echo(&mut self, or_nothing: bool) {
        let session = self.session;
        let (entries, for_granted) = self.expected();
        let (oids, definitions) =
            as_prepared(self.frame, self.parts.iter().flat_map(|part| part.items.iter()));
        self.request(Step::Echo, async move {
            let params: [&dyn Param; 6] = [&false, &entries, &for_granted, &oids, &definitions, &or_nothing];
            session.client.carry_out(ECHO, &params).await
        });
    }

    /// Whether the round's own statements say no wherever it must not be committed.
    fn decides_itself(&self) -> bool {
        let looked_at = &self.session.cloud.looked_at_first;
        let looked_at = looked_at.lock().unwrap_or_else(PoisonError::into_inner);
        let plain = |item: &RoundItem| {
            let table = &self.frame.tables[item.table].1;
            item.op == Op::Insert && table.plain && table.feed && !looked_at.contains(&table.oid)
        };
        self.parts.iter().flat_map(|part| part.items.iter()).all(plain)
            && self.parts.iter().any(|part| !part.items.is_empty())
    }

    /// How many entries the feed has if nothing but what is sent is caused, and which tables are taken at their word.
    fn expected(&self) -> (i64, Vec<u32>) {
        let (mut entries, mut granted) = (0, vec![]);
        for part in &self.parts {
            for range in part.sets() {
                let rows = range.len();
                let set = part.set(self.frame, range);
                entries += set.feed_entries(rows);
                if set.granted && !granted.contains(&set.table.1.oid) {
                    granted.push(set.table.1.oid);
                }
            }
        }
        (entries, granted)
    }

    async fn read(self, early_echo: bool) -> std::result::Result<Option<(Taken, bool)>, Trouble> {
        let Self { session, frame, requests, parts, unsent, in_steps } = self;
        let heavy = parts.iter().filter_map(|part| part.patience.as_ref()).map(|it| it.bytes).sum();
        // What several light rows take too long for, fewer will do.
        let heaviest = parts.iter().flat_map(|part| part.items.iter()).map(RoundItem::bytes).max();
        let heavy = heaviest.unwrap_or(0).max(heavy);
        let (answers, ended) = session.read_all(requests, heavy).await?;
        let trouble = match ended {
            Some(Ended::Trouble(trouble)) => Some(trouble),
            Some(Ended::AlreadyThere) => return Ok(None),
            Some(Ended::NotAsSent) => {
                let items = parts.iter().flat_map(|part| part.items.iter());
                let looked_at = &session.cloud.looked_at_first;
                let mut looked_at = looked_at.lock().unwrap_or_else(PoisonError::into_inner);
                looked_at.extend(items.map(|item| frame.tables[item.table].1.oid));
                return Ok(None);
            }
            None => unsent,
        };
        // Behind BEGIN and the fence.
        let mut left = answers.len().saturating_sub(2);
        let mut answers = answers.into_iter().skip(2);
        let mut in_the_way = in_steps;
        let mut taken = Taken::default();
        let mut already_there = vec![];
        'parts: for part in &parts {
            if part.patience.is_some() {
                left = left.saturating_sub(1);
                answers.next();
            }
            let tables = part.known.len();
            if left < 2 * tables {
                break;
            }
            left -= 2 * tables;
            for at in 0..tables {
                let locked = answers.next().unwrap_or_default().rows;
                in_the_way |= part.known(frame, at).misses_any(&locked)?;
            }
            for _ in 0..tables {
                in_the_way |= !answers.next().unwrap_or_default().rows.is_empty();
            }
            for range in part.sets() {
                if left < 2 {
                    break 'parts;
                }
                left -= 2;
                // Behind that of its stamps.
                let answer = answers.nth(1).unwrap_or_default();
                if !in_the_way {
                    part.set(frame, range).judge(&answer, &mut taken, &mut already_there)?;
                }
            }
            if part.patience.is_some() {
                left = left.saturating_sub(1);
                answers.next();
            }
        }
        match trouble {
            // A refusal perhaps only of what has to leave.
            Some(Trouble::Refused { .. }) | None if in_the_way => return Ok(None),
            Some(trouble) => return Err(trouble),
            None if !already_there.is_empty() => return Ok(None),
            None => {}
        }
        answers.next();
        let mut echo = Echo::default();
        if early_echo {
            echo = Echo::of(&answers.next().unwrap_or_default().rows)?;
        }
        if !echo.broken && (!early_echo || taken.stored_otherwise) {
            let items = parts.iter().flat_map(|part| part.items.iter());
            let late = session.mark_echo(frame, items, &taken).await?;
            echo = Echo { caused_more: echo.caused_more || late.caused_more, ..late };
        }
        // A table does not store any more what it is sent: whatever that comes to shows step by step.
        Ok((!echo.broken).then_some((taken, echo.caused_more)))
    }
}

impl CloudSession {
    /// Reads every answer: those before the first error, and that. `heavy` is what the heavy parts weigh.
    async fn read_all(
        &self,
        requests: Vec<(Step, Request<'_>)>,
        heavy: usize,
    ) -> std::result::Result<(Vec<Answer>, Option<Ended>), Trouble> {
        let mut answers = vec![];
        let mut ended = None;
        for (step, request) in requests {
            let answered = match request {
                Request::Answered(answered) => answered,
                Request::Under(work) => self.patiently(heavy, work).await?,
            };
            match answered {
                Ok(answer) if ended.is_none() => answers.push(answer),
                Err(error) if ended.is_none() => {
                    ended = Some(match step {
                        Step::NewRows if is_sqlstate(&error, UNIQUE_VIOLATION) => Ended::AlreadyThere,
                        Step::Echo if is_sqlstate(&error, DIVISION_BY_ZERO) => Ended::NotAsSent,
                        Step::Fence if is_sqlstate(&error, DIVISION_BY_ZERO) => {
                            Ended::Trouble(fenced_out().into())
                        }
                        Step::Fence => Ended::Trouble(self.cloud.explain(&error, Phase::Setup).into()),
                        Step::Ours | Step::Echo => {
                            Ended::Trouble(self.cloud.explain(&error, Phase::Pull).into())
                        }
                        Step::Rows | Step::NewRows => Ended::Trouble(self.trouble(&error)),
                    });
                }
                // It failed for the same reason.
                Ok(_) | Err(_) => {}
            }
        }
        Ok((answers, ended))
    }
}

/// What a statement of a round is to the round: whose trouble its error is.
#[derive(Clone, Copy)]
enum Step {
    /// The fence.
    Fence,
    /// It carries rows: what PostgreSQL refuses of it is data.
    Rows,
    /// The same with rows that are new, or already there.
    NewRows,
    /// What was caused.
    Echo,
    /// Ours alone.
    Ours,
}

type Answered = std::result::Result<Answer, tokio_postgres::Error>;

pub(super) const FENCE: &str = include_str!("../sql/postgres/fence.sql");
pub(super) const ECHO: &str = include_str!("../sql/postgres/own_echo.sql");
pub(super) const CONFLICTS: &str = include_str!("../sql/postgres/conflicts.sql");

/// What the fence fails with when it finds no row, and the echo where it is to be exactly what was sent, or nothing: nothing behind
/// them is carried out either.
pub(super) const DIVISION_BY_ZERO: &str = "22012";

const UNIQUE_VIOLATION: &str = "23505";

pub(super) fn fenced_out() -> CloudFailure {
    CloudFailure::new(FailureClass::Transient, "another session of this device has settled meanwhile")
}

/// The tables of these rows, by number, each with the definition that it was prepared with.
pub(super) fn as_prepared<'f, 'i>(
    frame: RoundFrame<'f>,
    items: impl IntoIterator<Item = &'i RoundItem>,
) -> (Vec<u32>, Vec<&'f str>) {
    let tables: BTreeSet<usize> = items.into_iter().map(|item| item.table).collect();
    tables.into_iter().map(|at| &frame.tables[at].1).map(|table| (table.oid, &*table.definition)).unzip()
}

/// What is known of all that a round caused.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Echo {
    /// More than was sent, or something else.
    pub(super) caused_more: bool,
    /// A table that was taken at its word does not store what it is sent any more.
    broken: bool,
}

impl Echo {
    pub(super) fn of(answer: &[Row]) -> Result<Self> {
        let row = answer.first().ok_or_else(|| unexpected("no word about the echo"))?;
        match row.cell::<i64>("altered")? {
            0 => Ok(Self { caused_more: row.cell::<i64>("marked")? > 0, broken: row.cell("broken")? }),
            _ => Err(CloudFailure::new(
                FailureClass::Transient,
                "the columns of a table have changed since it was prepared",
            )),
        }
    }
}

fn is_sqlstate(error: &tokio_postgres::Error, sqlstate: &str) -> bool {
    error.as_db_error().is_some_and(|server| server.code().code() == sqlstate)
}

/// What begins a round's transaction on this connection.
pub(super) fn begin(client: &Client, frame: RoundFrame<'_>) -> Result<String> {
    // A UUID: quoting it is a formality.
    let device = parse_uuid(frame.device)?;
    fail::fail_point!("cloud.begin", |_| Ok("SELECT 1 / 0".to_owned()));
    Ok(format!(
        "{}; SELECT set_config('tidewater.device', '{device}', true); SET CONSTRAINTS ALL DEFERRED",
        client.opening("")
    ))
}

/// The slowest link that is reckoned with, in bytes per second, and the longest time for one part.
const SLOWEST: u64 = 64 << 10;
const LONGEST: Duration = Duration::from_secs(30 * 60);

/// How long so many bytes may be on their way.
pub(super) fn time_for(bytes: usize) -> Duration {
    Duration::from_secs(bytes as u64 / SLOWEST).min(LONGEST)
}

/// What lets the server wait for rows that may take longer to come than it waits for a client that has begun something, and
/// what ends that.
pub(super) struct Patience {
    pub(super) begin: String,
    end: String,
    bytes: usize,
}

impl Patience {
    /// Nothing where the server waits long enough anyway.
    pub(super) fn with(items: &[RoundItem], statement_timeout: Duration) -> Option<Self> {
        let bytes: usize = items.iter().map(RoundItem::bytes).sum();
        let set =
            |wait: Duration| format!("SET LOCAL idle_in_transaction_session_timeout = {}", wait.as_millis());
        let (usual, takes) = (2 * statement_timeout, time_for(bytes));
        (takes > statement_timeout / 2).then(|| Self { begin: set(usual + takes), end: set(usual), bytes })
    }
}

/// The parameters of the fence.
pub(super) struct Fence {
    id: Uuid,
    device: Uuid,
    session: Uuid,
    previous: Option<Uuid>,
    xid: String,
    entry: i64,
}

impl Fence {
    pub(super) fn of(frame: RoundFrame<'_>) -> Result<Self> {
        Ok(Self {
            id: parse_uuid(frame.id)?,
            device: parse_uuid(frame.device)?,
            session: parse_uuid(frame.session)?,
            previous: frame.previous.map(parse_uuid).transpose()?,
            xid: frame.cursor.xid.clone(),
            entry: frame.cursor.id,
        })
    }

    pub(super) fn params(&self) -> Vec<&dyn Param> {
        vec![&self.id, &self.device, &self.session, &self.previous, &self.xid, &self.entry]
    }
}

/// The rows of one table that the cloud should have: locked and looked at before anything is done to them.
struct Known<'a> {
    table: &'a (Table, CloudTable),
    items: &'a [RoundItem],
    members: &'a [usize],
}

impl<'a> Known<'a> {
    fn lock(&self) -> String {
        cloud::lock(&self.table.0, &self.table.1)
    }

    fn touched(&self) -> String {
        cloud::touched(&self.table.0, &self.table.1)
    }

    fn keys(&self) -> Vec<Array<'a>> {
        let (table, cloud_table) = self.table;
        let (items, members) = (self.items, self.members);
        arrays(cloud_table, &table.key, |at, part| &items[members[at]].key[part], members.len())
    }

    fn seen(&self) -> Vec<i64> {
        self.members.iter().map(|at| self.items[*at].seen).collect()
    }

    /// Whether a row was not found to be locked that should be there: one that is to be updated; one that is to be deleted
    /// is gone already, unless it may be hidden.
    fn misses_any(&self, locked: &[Row]) -> Result<bool> {
        if locked.len() == self.members.len() {
            return Ok(false);
        }
        let may_be_hidden = self.table.1.hiding != Hiding::None;
        let mut present = HashSet::new();
        for row in locked {
            present.insert(self.members[position(row, self.members.len())?]);
        }
        let should_be = |at: &usize| may_be_hidden || matches!(self.items[*at].op, Op::Update(_));
        Ok(self.members.iter().any(|at| should_be(at) && !present.contains(at)))
    }
}

/// Rows of one table to which the same happens, as one statement.
pub(super) struct Set<'a> {
    table: &'a (Table, CloudTable),
    items: &'a [RoundItem],
    pub(super) members: &'a [usize],
    columns: Vec<usize>,
    pub(super) sql: String,
    granted: bool,
}

fn same_kind<'a>(items: &'a [RoundItem], order: &'a [usize]) -> impl Iterator<Item = &'a [usize]> {
    order.chunk_by(|a, b| items[*a].table == items[*b].table && items[*a].op == items[*b].op)
}

/// The sets of a round, in its order.
pub(super) fn sets<'a>(
    frame: RoundFrame<'a>,
    items: &'a [RoundItem],
    order: &'a [usize],
) -> impl Iterator<Item = Set<'a>> {
    same_kind(items, order)
        .filter(|members| items[members[0]].op != Op::Update(vec![]))
        .map(move |members| Set::new(frame, items, members, false))
}

impl<'a> Set<'a> {
    /// With `granted`, a table that stores what it is sent is taken at its word: what is amiss shows in the statement's failing, or
    /// in the echo.
    fn new(frame: RoundFrame<'a>, items: &'a [RoundItem], members: &'a [usize], granted: bool) -> Self {
        let first = &items[members[0]];
        let of = &frame.tables[first.table];
        let (table, cloud_table) = of;
        let granted = granted && first.op == Op::Insert && cloud_table.plain;
        let (sql, columns) = match &first.op {
            Op::Insert if granted => {
                (cloud::insert_plain(table, cloud_table), (0..table.columns.len()).collect())
            }
            Op::Insert => (cloud::insert(table, cloud_table), (0..table.columns.len()).collect()),
            Op::Update(columns) => {
                let all_columns = table.key.iter().chain(columns).copied().collect();
                (cloud::update(table, cloud_table, columns), all_columns)
            }
            Op::Delete => (cloud::delete(table, cloud_table), table.key.clone()),
        };
        Set { table: of, items, members, columns, sql, granted }
    }

    pub(super) fn arrays(&self) -> Vec<Array<'a>> {
        let value_at = |at: usize, place: usize| self.value(at, self.columns[place]);
        arrays(&self.table.1, &self.columns, value_at, self.members.len())
    }

    /// What is sent for a column of the row at a place.
    fn value(&self, at: usize, column: usize) -> &'a CloudValue {
        let item = &self.items[self.members[at]];
        match self.table.0.key.iter().position(|k| *k == column) {
            Some(part) => &item.key[part],
            None => &item.values[column],
        }
    }

    /// How many entries so many changed rows make in the feed.
    fn feed_entries(&self, changed: usize) -> i64 {
        if self.table.1.feed { i64::try_from(changed).unwrap_or(i64::MAX) } else { 0 }
    }

    /// What the statement's answer says of the rows.
    pub(super) fn judge(
        &self,
        answer: &Answer,
        taken: &mut Taken,
        already_there: &mut Vec<usize>,
    ) -> std::result::Result<(), Trouble> {
        let op = &self.items[self.members[0]].op;
        let mut changed = self.members.len();
        if self.granted {
            taken.for_granted.push(self.table.1.oid);
            changed = usize::try_from(answer.changed).unwrap_or_default();
            if changed < self.members.len() {
                // A trigger that the echo tells of swallowed some. Which ones, the statement does not say; that it was not all of
                // them is enough to go step by step.
                already_there.extend_from_slice(self.members);
            }
        }
        for row in &answer.rows {
            if *op == Op::Delete {
                changed = usize::try_from(row.cell::<i64>("gone")?).unwrap_or_default();
                if !row.cell::<Vec<i64>>("kept")?.is_empty() {
                    return Err(discarded(&self.table.0.name));
                }
            } else if let Some(place) = row.cell::<Option<i32>>("misfit")? {
                let column = usize::try_from(place).ok().and_then(|place| self.columns.get(place).copied());
                let column = column.ok_or_else(|| unexpected(&format!("column {place}")))?;
                let sent = self.value(position(row, self.members.len())?, column);
                return Err(not_as_sent(&self.table.0, &self.table.1, column, sent));
            } else if row.cell("done")? {
                taken.stored_otherwise = true;
            } else if *op == Op::Insert {
                already_there.push(self.members[position(row, self.members.len())?]);
                changed = changed.saturating_sub(1);
            } else {
                // Locked a moment ago, and yet nothing was updated: a trigger there said no in silence.
                return Err(discarded(&self.table.0.name));
            }
        }
        taken.feed_entries += self.feed_entries(changed);
        Ok(())
    }
}

pub(super) fn conflict_arrays(conflicts: &[ConflictRow]) -> Vec<Vec<Option<&str>>> {
    (0..7).map(|field| conflicts.iter().map(|c| c.fields[field].as_deref()).collect()).collect()
}

pub(super) fn conflict_params<'a>(
    device: &'a Uuid,
    arrays: &'a [Vec<Option<&'a str>>],
) -> Vec<&'a dyn Param> {
    let mut params: Vec<&dyn Param> = vec![device];
    params.extend(arrays.iter().map(|array| array as &dyn Param));
    params
}
