//! Uses a server by the library etcd-client of Rust, and prints what it sees.

use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Error, GetOptions,
    GetResponse, LockOptions, Permission, PermissionType, ProclaimOptions, PutOptions,
    ResignOptions, SortOrder, SortTarget, TlsOptions, Txn, TxnOp, WatchOptions,
};
use tokio::time::sleep;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

async fn connect(user: Option<(&str, &str)>) -> Result<Client> {
    let authority = Certificate::from_pem(std::fs::read(std::env::var("CA")?)?);
    let mut options = ConnectOptions::new()
        .with_tls(TlsOptions::new().ca_certificate(authority))
        .with_timeout(Duration::from_secs(60));
    if let Some((name, password)) = user {
        options = options.with_user(name, password);
    }
    let endpoint = format!("https://{}", std::env::var("ENDPOINT")?);
    Ok(Client::connect([endpoint], Some(options)).await?)
}

fn step(name: &str) {
    println!("== {name}");
}

fn show(answer: &GetResponse) -> Result<()> {
    for kv in answer.kvs() {
        println!(
            "{}={} {} {} {}",
            kv.key_str()?,
            kv.value_str()?,
            kv.create_revision(),
            kv.mod_revision(),
            kv.version()
        );
    }
    println!("{} {}", answer.count(), answer.more());
    Ok(())
}

fn refused<T>(result: std::result::Result<T, Error>) {
    match result {
        Ok(_) => println!("not refused"),
        Err(Error::GRpcStatus(status)) => println!("{:?} {}", status.code(), status.message()),
        Err(error) => println!("{error}"),
    }
}

async fn keys(client: &mut Client) -> Result<()> {
    step("kv");
    let put = client.put("a", "1", None).await?;
    println!("{:?}", put.header().map(|header| header.revision()));
    let put = client
        .put("a", "2", Some(PutOptions::new().with_prev_key()))
        .await?;
    println!(
        "{}",
        put.prev_key().ok_or("no previous value")?.value_str()?
    );
    client.put("b", "3", None).await?;
    let all = GetOptions::new()
        .with_all_keys()
        .with_sort(SortTarget::Key, SortOrder::Descend);
    show(&client.get("", Some(all)).await?)?;
    show(
        &client
            .get("a", Some(GetOptions::new().with_revision(2)))
            .await?,
    )?;
    let limited = GetOptions::new().with_all_keys().with_limit(1);
    show(&client.get("", Some(limited)).await?)?;
    let deleted = client
        .delete("b", Some(DeleteOptions::new().with_prev_key()))
        .await?;
    println!("{} {}", deleted.deleted(), deleted.prev_kvs().len());
    client.compact(2, None).await?;
    refused(
        client
            .get("a", Some(GetOptions::new().with_revision(1)))
            .await,
    );

    step("txn");
    for wanted in ["2", "other"] {
        let txn = Txn::new()
            .when([Compare::value("a", CompareOp::Equal, wanted)])
            .and_then([TxnOp::put("t", "x", None), TxnOp::get("a", None)])
            .or_else([TxnOp::get("t", None), TxnOp::delete("t", None)]);
        let answer = client.txn(txn).await?;
        println!("{} {}", answer.succeeded(), answer.op_responses().len());
    }
    Ok(())
}

/// A stream ends with its connection: begins it again where it was.
async fn watch(client: &mut Client) -> Result<()> {
    step("watch");
    let head = client.get("a", None).await?;
    let mut next = head.header().ok_or("no header")?.revision() + 1;
    let mut seen = 0;
    let mut restarted = false;
    while seen < 4 {
        let options = WatchOptions::new()
            .with_prefix()
            .with_prev_key()
            .with_start_revision(next);
        let Ok(mut stream) = client.watch("w/", Some(options)).await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        if !restarted {
            client.put("w/1", "one", None).await?;
            client.put("x", "not watched", None).await?;
            client.delete("w/1", None).await?;
        }
        while seen < 4 {
            let Ok(Some(answer)) = stream.message().await else {
                break;
            };
            for event in answer.events() {
                let kv = event.kv().ok_or("no key")?;
                println!(
                    "{:?} {}={} {} {}",
                    event.event_type(),
                    kv.key_str()?,
                    kv.value_str()?,
                    kv.mod_revision(),
                    event.prev_kv().is_some()
                );
                next = kv.mod_revision() + 1;
                seen += 1;
            }
            if seen == 2 && !restarted {
                restarted = true;
                println!("RESTART");
                std::io::stdin().read_line(&mut String::new())?;
                while client.put("w/2", "two", None).await.is_err() {
                    sleep(Duration::from_millis(100)).await;
                }
                client.put("w/3", "three", None).await?;
            }
        }
    }
    Ok(())
}

async fn lease(client: &mut Client) -> Result<()> {
    step("lease");
    let id = client.lease_grant(3, None).await?.id();
    let leased = || Some(PutOptions::new().with_lease(id));
    client.put("l", "leased", leased()).await?;
    let (mut keeper, mut answers) = client.lease_keep_alive(id).await?;
    for _ in 0..4 {
        keeper.keep_alive().await?;
        println!("{:?}", answers.message().await?.map(|answer| answer.ttl()));
        sleep(Duration::from_secs(1)).await;
    }
    let left = client
        .lease_time_to_live(
            id,
            Some(etcd_client::LeaseTimeToLiveOptions::new().with_keys()),
        )
        .await?;
    println!("{} {}", left.granted_ttl(), left.keys().len());
    while client.get("l", None).await?.count() > 0 {
        sleep(Duration::from_millis(100)).await;
    }
    println!("{}", client.lease_time_to_live(id, None).await?.ttl());
    let id = client.lease_grant(60, None).await?.id();
    client
        .put("l", "leased", Some(PutOptions::new().with_lease(id)))
        .await?;
    client.lease_revoke(id).await?;
    println!("{}", client.get("l", None).await?.count());
    Ok(())
}

/// By the service Lock.
async fn lock(client: &mut Client) -> Result<()> {
    step("lock");
    let first = client.lease_grant(60, None).await?.id();
    let second = client.lease_grant(60, None).await?.id();
    let of = |lease| Some(LockOptions::new().with_lease(lease));
    let held = client.lock("lock", of(first)).await?;
    let mut other = client.clone();
    let waiting = tokio::spawn(async move { other.lock("lock", of(second)).await });
    sleep(Duration::from_millis(500)).await;
    println!("{}", waiting.is_finished());
    client.unlock(held.key()).await?;
    let taken = waiting.await??;
    println!("{}", taken.key() != held.key());
    client.unlock(taken.key()).await?;
    for lease in [first, second] {
        client.lease_revoke(lease).await?;
    }
    Ok(())
}

/// By the service Election.
async fn elect(client: &mut Client) -> Result<()> {
    step("election");
    let first = client.lease_grant(60, None).await?.id();
    let second = client.lease_grant(60, None).await?.id();
    let won = client.campaign("election", "first", first).await?;
    let leader = won.leader().ok_or("no leader")?.clone();
    let mut seen = client.observe("election").await?;
    println!(
        "{}",
        seen.message()
            .await?
            .ok_or("end")?
            .kv()
            .ok_or("none")?
            .value_str()?
    );
    let again = ProclaimOptions::new().with_leader(leader.clone());
    client.proclaim("first again", Some(again)).await?;
    println!(
        "{}",
        seen.message()
            .await?
            .ok_or("end")?
            .kv()
            .ok_or("none")?
            .value_str()?
    );
    let mut other = client.clone();
    let waiting = tokio::spawn(async move { other.campaign("election", "second", second).await });
    client
        .resign(Some(ResignOptions::new().with_leader(leader)))
        .await?;
    let won = waiting.await??;
    println!(
        "{}",
        client
            .leader("election")
            .await?
            .kv()
            .ok_or("none")?
            .value_str()?
    );
    let leader = won.leader().ok_or("no leader")?.clone();
    client
        .resign(Some(ResignOptions::new().with_leader(leader)))
        .await?;
    refused(client.leader("election").await);
    Ok(())
}

async fn auth(client: &mut Client) -> Result<()> {
    step("auth");
    client.role_add("app").await?;
    let permission = Permission::new(PermissionType::Readwrite, "app/").with_prefix();
    client.role_grant_permission("app", permission).await?;
    client.role_add("root").await?;
    for user in ["root", "app"] {
        client
            .user_add(user, format!("secret-{user}"), None)
            .await?;
        client.user_grant_role(user, user).await?;
    }
    client.auth_enable().await?;
    let mut app = connect(Some(("app", "secret-app"))).await?;
    let mut root = connect(Some(("root", "secret-root"))).await?;
    app.put("app/colour", "green", None).await?;
    let found = app.get("app/colour", None).await?;
    println!("{}", found.kvs()[0].value_str()?);
    refused(app.put("other", "red", None).await);
    refused(client.get("app/colour", None).await);
    match connect(Some(("app", "wrong"))).await {
        Ok(_) => println!("not refused"),
        Err(error) => match error.downcast::<Error>() {
            Ok(error) => refused::<()>(Err(*error)),
            Err(error) => return Err(error),
        },
    }
    println!("{:?}", root.user_list().await?.users());
    root.auth_disable().await?;
    println!("{}", client.get("app/colour", None).await?.count());
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut client = connect(None).await?;
    keys(&mut client).await?;
    watch(&mut client).await?;
    lease(&mut client).await?;
    lock(&mut client).await?;
    elect(&mut client).await?;
    auth(&mut client).await?;
    println!("done");
    Ok(())
}
