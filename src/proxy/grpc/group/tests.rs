//! Groups without a cluster: what they do with inputs, and with the end of their stream.

use super::super::renewals::Renewals;
use super::*;
use crate::proto::etcdserverpb::LeaseKeepAliveRequest;
use crate::transport::Dialler;

type Kept = Group<Renewals>;

/// A group without a cluster.
fn group() -> Kept {
    let upstream = Arc::new(Upstream::new(
        vec!["http://127.0.0.1:1".into()],
        Dialler::default(),
        None,
    ));
    let groups = Groups::<Renewals>::new(upstream, Namespace::new(""), |_| Renewals::default());
    Group {
        number: 0,
        all: groups.0,
        metadata: MetadataMap::new(),
        core: Renewals::default(),
        sinks: BTreeMap::new(),
        requests: VecDeque::new(),
        link: None,
    }
}

type Heard = mpsc::Receiver<Result<<Renewals as Core>::Answer, Status>>;

fn open(group: &mut Kept, stream: StreamId) -> Heard {
    let (answers, heard) = mpsc::channel(MAX_QUEUED);
    let sink = Sink {
        answers,
        state: Arc::default(),
    };
    group.take(Input::Opened(stream, sink));
    heard
}

fn renew(id: i64) -> LeaseKeepAliveRequest {
    LeaseKeepAliveRequest { id }
}

#[tokio::test]
async fn who_comes_when_a_stream_ends_for_good_begins_anew() {
    let mut group = group();
    let mut ended = open(&mut group, 1);
    group.take(Input::Request(1, renew(7)));
    group.carry_out();
    assert_eq!(group.requests.len(), 1);
    group.hear(Some(Err(Status::permission_denied("no")))).await;
    let heard = ended.recv().await.expect("hears of it");
    assert_eq!(heard.expect_err("is an error").message(), "no");
    assert!(group.requests.is_empty());
    let _heard = open(&mut group, 2);
    group.take(Input::Request(2, renew(7)));
    group.carry_out();
    assert_eq!(group.requests.len(), 1, "the renewal is asked for");
}

#[tokio::test]
async fn clients_wait_while_the_cluster_takes_nothing() {
    let mut group = group();
    let _heard = open(&mut group, 1);
    let (requests, _taken) = mpsc::channel(1);
    let (_answer, answers) = mpsc::channel(1);
    group.link = Some(Link {
        requests,
        answers,
        task: tokio::spawn(std::future::pending()),
    });
    let (inputs, mut waiting) = mpsc::channel(MAX_REQUESTS);
    tokio::spawn(async move {
        for id in 0.. {
            if inputs.send(Input::Request(1, renew(id))).await.is_err() {
                break;
            }
        }
    });
    let short = Duration::from_millis(100);
    let mut turns = 0;
    while let Ok(turn) = tokio::time::timeout(short, group.turn(&mut waiting)).await {
        if let Turn::Input(Some(input)) = turn {
            group.take(input);
        }
        group.carry_out();
        turns += 1;
        assert!(turns < 10 * MAX_FOR_CLUSTER, "it takes more and more");
    }
    assert_eq!(group.requests.len(), MAX_FOR_CLUSTER);
}
