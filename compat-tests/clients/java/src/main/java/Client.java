import static java.nio.charset.StandardCharsets.UTF_8;

import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.ClientBuilder;
import io.etcd.jetcd.Election;
import io.etcd.jetcd.KeyValue;
import io.etcd.jetcd.Lease;
import io.etcd.jetcd.Watch;
import io.etcd.jetcd.auth.Permission;
import io.etcd.jetcd.election.LeaderResponse;
import io.etcd.jetcd.kv.GetResponse;
import io.etcd.jetcd.kv.TxnResponse;
import io.etcd.jetcd.lease.LeaseKeepAliveResponse;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.LeaseOption;
import io.etcd.jetcd.options.PutOption;
import io.etcd.jetcd.options.WatchOption;
import io.etcd.jetcd.support.CloseableClient;
import io.grpc.stub.StreamObserver;
import java.io.BufferedReader;
import java.io.File;
import java.io.InputStreamReader;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/** Uses a server by the library jetcd, and prints what it sees. */
public final class Client {
  private static io.etcd.jetcd.Client connect(String user, String password) throws Exception {
    ClientBuilder builder =
        io.etcd.jetcd.Client.builder()
            .endpoints("https://" + System.getenv("ENDPOINT"))
            .sslContext(ssl -> ssl.trustManager(new File(System.getenv("CA"))));
    if (user != null) {
      builder.user(of(user)).password(of(password));
    }
    return builder.build();
  }

  private static ByteSequence of(String text) {
    return ByteSequence.from(text, UTF_8);
  }

  private static void step(String name) {
    System.out.println("== " + name);
  }

  private static void show(Object... what) {
    StringBuilder line = new StringBuilder();
    for (Object one : what) {
      line.append(line.length() == 0 ? "" : " ").append(one);
    }
    System.out.println(line);
  }

  private static void show(GetResponse answer) {
    for (KeyValue kv : answer.getKvs()) {
      show(
          kv.getKey(), kv.getValue(), kv.getCreateRevision(), kv.getModRevision(), kv.getVersion());
    }
    show(answer.getCount(), answer.isMore());
  }

  private static <T> T wait(CompletableFuture<T> future) throws Exception {
    return future.get(60, TimeUnit.SECONDS);
  }

  private static void refused(Callable<CompletableFuture<?>> call) throws Exception {
    try {
      call.call().get(60, TimeUnit.SECONDS);
      show("not refused");
    } catch (ExecutionException error) {
      show(error.getCause().getClass().getSimpleName(), error.getCause().getMessage());
    }
  }

  private static void until(Callable<Boolean> ready) throws Exception {
    for (long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(60); ; Thread.sleep(100)) {
      try {
        if (ready.call()) {
          return;
        }
      } catch (ExecutionException | TimeoutException error) {
        // The server is not back yet.
      }
      if (System.nanoTime() > end) {
        throw new TimeoutException("in vain");
      }
    }
  }

  private static void keys(io.etcd.jetcd.Client client) throws Exception {
    step("kv");
    var kv = client.getKVClient();
    show(wait(kv.put(of("a"), of("1"))).getHeader().getRevision());
    PutOption previous = PutOption.builder().withPrevKV().build();
    show(wait(kv.put(of("a"), of("2"), previous)).getPrevKv().getValue());
    wait(kv.put(of("b"), of("3")));
    GetOption all =
        GetOption.builder()
            .withRange(of("c"))
            .withSortField(GetOption.SortTarget.KEY)
            .withSortOrder(GetOption.SortOrder.DESCEND)
            .build();
    show(wait(kv.get(of("a"), all)));
    show(wait(kv.get(of("a"), GetOption.builder().withRevision(2).build())));
    show(wait(kv.get(of("a"), GetOption.builder().withRange(of("c")).withLimit(1).build())));
    DeleteOption deletion = DeleteOption.builder().withPrevKV(true).build();
    show(wait(kv.delete(of("b"), deletion)).getPrevKvs().get(0).getValue());
    wait(kv.compact(2));
    refused(() -> kv.get(of("a"), GetOption.builder().withRevision(1).build()));

    step("txn");
    for (String wanted : new String[] {"2", "other"}) {
      TxnResponse answer =
          wait(
              kv.txn()
                  .If(new Cmp(of("a"), Cmp.Op.EQUAL, CmpTarget.value(of(wanted))))
                  .Then(
                      Op.put(of("t"), of("x"), PutOption.DEFAULT),
                      Op.get(of("a"), GetOption.DEFAULT))
                  .Else(
                      Op.get(of("t"), GetOption.DEFAULT),
                      Op.delete(of("t"), DeleteOption.DEFAULT))
                  .commit());
      show(
          answer.isSucceeded(),
          answer.getPutResponses().size(),
          answer.getGetResponses().size(),
          answer.getDeleteResponses().size());
    }
  }

  private static void watch(io.etcd.jetcd.Client client) throws Exception {
    step("watch");
    var kv = client.getKVClient();
    BlockingQueue<String> seen = new LinkedBlockingQueue<>();
    WatchOption option = WatchOption.builder().isPrefix(true).withPrevKV(true).build();
    Watch.Listener listener =
        Watch.listener(
            answer ->
                answer
                    .getEvents()
                    .forEach(
                        event -> {
                          KeyValue now = event.getKeyValue();
                          seen.add(
                              event.getEventType()
                                  + " "
                                  + now.getKey()
                                  + "="
                                  + now.getValue()
                                  + " "
                                  + now.getModRevision());
                        }),
            error -> {
              // The connection ended; the library begins the watch again.
            });
    try (Watch.Watcher watcher = client.getWatchClient().watch(of("w/"), option, listener)) {
      wait(kv.put(of("w/1"), of("one")));
      wait(kv.put(of("x"), of("not watched")));
      wait(kv.delete(of("w/1")));
      show(seen.poll(60, TimeUnit.SECONDS));
      show(seen.poll(60, TimeUnit.SECONDS));
      show("RESTART");
      new BufferedReader(new InputStreamReader(System.in)).readLine();
      until(() -> kv.put(of("w/2"), of("two")).get(5, TimeUnit.SECONDS) != null);
      wait(kv.put(of("w/3"), of("three")));
      show(seen.poll(60, TimeUnit.SECONDS));
      show(seen.poll(60, TimeUnit.SECONDS));
    }
  }

  private static void lease(io.etcd.jetcd.Client client) throws Exception {
    step("lease");
    var kv = client.getKVClient();
    Lease leases = client.getLeaseClient();
    long id = wait(leases.grant(3)).getID();
    wait(kv.put(of("l"), of("leased"), PutOption.builder().withLeaseId(id).build()));
    BlockingQueue<Long> renewed = new LinkedBlockingQueue<>();
    StreamObserver<LeaseKeepAliveResponse> observer =
        new StreamObserver<>() {
          @Override
          public void onNext(LeaseKeepAliveResponse answer) {
            renewed.add(answer.getTTL());
          }

          @Override
          public void onError(Throwable error) {
            renewed.add(-2L);
          }

          @Override
          public void onCompleted() {}
        };
    try (CloseableClient alive = leases.keepAlive(id, observer)) {
      for (int i = 0; i < 4; i++) {
        show(renewed.poll(60, TimeUnit.SECONDS));
      }
    }
    LeaseOption attached = LeaseOption.builder().withAttachedKeys().build();
    show(wait(leases.timeToLive(id, attached)).getKeys().size());
    until(() -> wait(kv.get(of("l"))).getCount() == 0);
    show(wait(leases.timeToLive(id, LeaseOption.DEFAULT)).getTTL());
    id = wait(leases.grant(60)).getID();
    wait(kv.put(of("l"), of("leased"), PutOption.builder().withLeaseId(id).build()));
    show(wait(leases.keepAliveOnce(id)).getTTL());
    wait(leases.revoke(id));
    show(wait(kv.get(of("l"))).getCount());
  }

  /** By the service Lock. */
  private static void lock(io.etcd.jetcd.Client client) throws Exception {
    step("lock");
    Lease leases = client.getLeaseClient();
    long first = wait(leases.grant(60)).getID();
    long second = wait(leases.grant(60)).getID();
    var locks = client.getLockClient();
    ByteSequence held = wait(locks.lock(of("lock"), first)).getKey();
    var waiting = locks.lock(of("lock"), second);
    try {
      waiting.get(500, TimeUnit.MILLISECONDS);
      show("not kept out");
    } catch (TimeoutException error) {
      show("kept out");
    }
    wait(locks.unlock(held));
    ByteSequence taken = wait(waiting).getKey();
    show(!taken.equals(held));
    wait(locks.unlock(taken));
    wait(leases.revoke(first));
    wait(leases.revoke(second));
  }

  /** By the service Election. */
  private static void elect(io.etcd.jetcd.Client client) throws Exception {
    step("election");
    Lease leases = client.getLeaseClient();
    long first = wait(leases.grant(60)).getID();
    long second = wait(leases.grant(60)).getID();
    Election election = client.getElectionClient();
    var won = wait(election.campaign(of("election"), first, of("first"))).getLeader();
    BlockingQueue<String> seen = new LinkedBlockingQueue<>();
    election.observe(
        of("election"),
        new Election.Listener() {
          @Override
          public void onNext(LeaderResponse answer) {
            seen.add(answer.getKv().getValue().toString());
          }

          @Override
          public void onError(Throwable error) {
            seen.add("error " + error.getMessage());
          }

          @Override
          public void onCompleted() {}
        });
    show(seen.poll(60, TimeUnit.SECONDS));
    wait(election.proclaim(won, of("first again")));
    show(seen.poll(60, TimeUnit.SECONDS));
    var waiting = election.campaign(of("election"), second, of("second"));
    wait(election.resign(won));
    won = wait(waiting).getLeader();
    show(seen.poll(60, TimeUnit.SECONDS));
    show(wait(election.leader(of("election"))).getKv().getValue());
    wait(election.resign(won));
    refused(() -> election.leader(of("election")));
  }

  private static void auth(io.etcd.jetcd.Client client) throws Exception {
    step("auth");
    var auth = client.getAuthClient();
    wait(auth.roleAdd(of("app")));
    wait(
        auth.roleGrantPermission(
            of("app"), of("app/"), of("app0"), Permission.Type.READWRITE));
    wait(auth.roleAdd(of("root")));
    for (String user : new String[] {"root", "app"}) {
      wait(auth.userAdd(of(user), of("secret-" + user)));
      wait(auth.userGrantRole(of(user), of(user)));
    }
    wait(auth.authEnable());
    try (var app = connect("app", "secret-app");
        var root = connect("root", "secret-root");
        var wrong = connect("app", "wrong")) {
      wait(app.getKVClient().put(of("app/colour"), of("green")));
      show(wait(app.getKVClient().get(of("app/colour"))).getKvs().get(0).getValue());
      refused(() -> app.getKVClient().put(of("other"), of("red")));
      refused(() -> client.getKVClient().get(of("app/colour")));
      refused(() -> wrong.getKVClient().get(of("app/colour")));
      show(wait(root.getAuthClient().userList()).getUsers());
      wait(root.getAuthClient().authDisable());
    }
    show(wait(client.getKVClient().get(of("app/colour"))).getCount());
  }

  public static void main(String[] arguments) throws Exception {
    try (var client = connect(null, null)) {
      keys(client);
      watch(client);
      lease(client);
      lock(client);
      elect(client);
      auth(client);
    }
    show("done");
    System.exit(0);
  }
}
