// Uses a server by the library etcd3 of Node, and prints what it sees.
'use strict';
const fs = require('fs');
const readline = require('readline');
const { Etcd3, Range } = require('etcd3');

const connect = (auth) =>
  new Etcd3({
    hosts: `https://${process.env.ENDPOINT}`,
    credentials: { rootCertificate: fs.readFileSync(process.env.CA) },
    auth,
  });
const show = (...what) =>
  console.log(...what.map((one) => (typeof one === 'object' ? JSON.stringify(one) : one)));
const step = (name) => show('==', name);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(ready) {
  for (const end = Date.now() + 60000; ; await sleep(100)) {
    try {
      if (await ready()) return;
    } catch (error) {
      if (Date.now() > end) throw error;
    }
    if (Date.now() > end) throw new Error('in vain');
  }
}

async function refused(call) {
  try {
    await call();
    show('not refused');
  } catch (error) {
    show(error.constructor.name, error.message);
  }
}

async function keys(client) {
  step('kv');
  show((await client.put('a').value('1')).header.revision);
  const previous = await client.put('a').value('2').getPrevious();
  show(previous.value.toString(), previous.version);
  await client.put('b').value(3);
  const all = await client.getAll().sort('Key', 'Descend').exec();
  for (const kv of all.kvs) {
    show(kv.key.toString(), kv.value.toString(), kv.create_revision, kv.mod_revision, kv.version);
  }
  show(all.count, all.more, await client.getAll().limit(1).keys());
  show(await client.get('a').revision(2).string(), await client.get('none'), await client.get('b').number());
  show((await client.delete().key('b').getPrevious()).length, (await client.delete().prefix('none')).deleted);
  await client.kv.compact({ revision: 2 });
  await refused(() => client.get('a').revision(1).string());

  step('txn');
  for (const wanted of ['2', 'other']) {
    const answer = await client
      .if('a', 'Value', '==', wanted)
      .and('a', 'Version', '>', 0)
      .then(client.put('t').value('x'), client.get('a'))
      .else(client.get('t'), client.delete().key('t'))
      .commit();
    show(answer.succeeded, answer.header.revision, answer.responses.map((one) => one.response));
  }
  show(
    await client.stm().transact(async (tx) => {
      const value = await tx.get('a');
      await tx.put('stm').value(`was ${value}`);
      return value;
    }),
    await client.get('stm'),
  );
}

async function watch(client) {
  step('watch');
  const seen = [];
  const watcher = await client.watch().prefix('w/').withPreviousKV().create();
  const note = (kind) => (kv, previous) =>
    seen.push([kind, kv.key.toString(), kv.value.toString(), kv.mod_revision, Boolean(previous && previous.version !== '0')]);
  watcher.on('put', note('put')).on('delete', note('delete'));
  await client.put('w/1').value('one');
  await client.put('x').value('not watched');
  await client.delete().key('w/1');
  await until(() => seen.length === 2);
  const lines = readline.createInterface({ input: process.stdin });
  const line = new Promise((resolve) => lines.once('line', resolve));
  show('RESTART');
  await line;
  lines.close();
  await until(() => client.put('w/2').value('two'));
  await client.put('w/3').value('three');
  await until(() => seen.length >= 4);
  seen.forEach((event) => show(...event));
  await watcher.cancel();
}

async function lease(client) {
  step('lease');
  const kept = client.lease(3);
  await kept.put('l').value('leased');
  show((await kept.keepaliveOnce()).TTL);
  await sleep(4000);
  const id = await kept.grant();
  const left = await client.leaseClient.leaseTimeToLive({ ID: id, keys: true });
  show(await client.get('l'), left.grantedTTL, left.keys.length);
  await kept.revoke();
  show(await client.get('l'), (await client.leaseClient.leaseTimeToLive({ ID: id })).TTL);
  const short = client.lease(2, { autoKeepAlive: false });
  await short.put('s').value('short');
  await until(async () => (await client.get('s')) === null);
  show('expired');
}

async function lock(client) {
  step('lock');
  const first = client.lock('lock').ttl(30);
  const second = client.lock('lock').ttl(30);
  await first.acquire();
  await refused(() => second.acquire());
  await first.release();
  await second.acquire();
  await refused(() => first.acquire());
  await second.release();
  show(await client.lock('lock').do(() => 'done under the lock'));
}

async function elect(client) {
  step('election');
  const election = client.election('election', 30);
  const other = connect();
  const first = election.campaign('first');
  await first.wait();
  const observer = await election.observe();
  await until(() => observer.leader() === 'first');
  await first.proclaim('first again');
  await until(() => observer.leader() === 'first again');
  const second = other.election('election', 30).campaign('second');
  await sleep(200);
  await first.resign();
  await second.wait();
  await until(() => observer.leader() === 'second');
  show(await election.leader());
  await second.resign();
  await until(() => !observer.hasLeader);
  await observer.cancel();
  other.close();
}

async function auth(client) {
  step('auth');
  const app = await client.role('app').create();
  await app.grant({ permission: 'Readwrite', range: Range.prefix('app/') });
  await client.role('root').create();
  for (const name of ['root', 'app']) {
    const user = await client.user(name).create(`secret-${name}`);
    await user.addRole(name);
  }
  await client.auth.authEnable();
  const one = connect({ username: 'app', password: 'secret-app' });
  const root = connect({ username: 'root', password: 'secret-root' });
  await one.put('app/colour').value('green');
  show(await one.get('app/colour'));
  await refused(() => one.put('other').value('red'));
  await refused(() => client.get('app/colour'));
  await refused(() => connect({ username: 'app', password: 'wrong' }).get('app/colour'));
  show((await root.getUsers()).map((user) => user.name), (await root.getRoles()).map((role) => role.name));
  await root.auth.authDisable();
  show(await client.get('app/colour'));
  one.close();
  root.close();
}


async function main() {
  const client = connect();
  await keys(client);
  await watch(client);
  await lease(client);
  await lock(client);
  await elect(client);
  await auth(client);
  client.close();
  show('done');
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
