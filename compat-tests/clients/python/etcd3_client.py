"""Uses a server by the library etcd3 of Python, and prints what it sees."""
import asyncio
import os
import sys
import threading
import time
import types

# The release of tenacity that etcd3's locks are written for asks for it.
asyncio.coroutine = types.coroutine

import etcd3
import grpc
from etcd3 import etcdrpc
from etcd3.etcdrpc import auth_pb2

host, port = os.environ["ENDPOINT"].split(":")
TIMEOUT = 20


def connect(**who):
    return etcd3.client(host=host, port=int(port), ca_cert=os.environ["CA"], timeout=TIMEOUT, **who)


def step(name):
    print("==", name)


def show(*what):
    print(*what, flush=True)


def restart():
    print("RESTART", flush=True)
    sys.stdin.readline()


def until(ready):
    end = time.monotonic() + 60
    while True:
        try:
            if ready():
                return
        except (etcd3.exceptions.Etcd3Exception, grpc.RpcError):
            pass
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.1)


client = connect()

step("kv")
show(client.put("a", "1").header.revision)
show(client.put("a", "2", prev_kv=True).prev_kv.value)
show(client.put("b", "3").header.revision)
value, meta = client.get("a")
show(value, meta.key, meta.create_revision, meta.mod_revision, meta.version, meta.lease_id)
show([value for value, _ in client.get_range("a", "c", sort_order="descend")])
show(client.get("none"))
show(client.delete("b", prev_kv=True, return_response=True).prev_kvs[0].value)
show(client.delete_prefix("none").deleted)
show(client.compact(2))
try:
    old = etcdrpc.RangeRequest(key=b"a", revision=1)
    client.kvstub.Range(old, TIMEOUT)
except grpc.RpcError as error:
    show(error.code(), error.details())

step("txn")
for wanted in ("2", "other"):
    done, answers = client.transaction(
        compare=[client.transactions.value("a") == wanted, client.transactions.version("a") > 0],
        success=[client.transactions.put("t", "x"), client.transactions.get("a")],
        failure=[client.transactions.get("t"), client.transactions.delete("t")],
    )
    show(done, [type(a).__name__ if not isinstance(a, list) else [v for v, _ in a] for a in answers])
show(client.put_if_not_exists("t", "new"), client.put_if_not_exists("t", "newer"), client.replace("t", "new", "newest"))

step("watch")
seen = []
revision = [client.get_response("a").header.revision + 1]


def watch():
    """The library ends its watches with the connection: begins them again where they were."""
    def callback(response):
        if isinstance(response, Exception):
            broken.set()
            return
        for event in response.events:
            seen.append((type(event).__name__, event.key, event.value, event.mod_revision))
            revision[0] = event.mod_revision + 1
    broken.clear()
    client.add_watch_prefix_callback("w/", callback, start_revision=revision[0])


broken = threading.Event()
watch()
client.put("w/1", "one")
client.put("x", "not watched")
client.delete("w/1")
until(lambda: len(seen) == 2)
restart()
until(lambda: client.put("w/2", "two"))
if not broken.wait(60):
    raise TimeoutError("the watch did not end")
until(lambda: watch() is None)
client.put("w/3", "three")
until(lambda: len(seen) >= 4)
for event in seen:
    show(*event)

step("lease")
lease = client.lease(30)
client.put("l", "leased", lease=lease)
show(lease.granted_ttl, 25 < lease.remaining_ttl <= 30, list(lease.keys))
show([answer.TTL for answer in lease.refresh()])
lease.revoke()
show(client.get("l"), client.get_lease_info(lease.id).TTL)
short = client.lease(2)
client.put("s", "short", lease=short)
until(lambda: client.get("s")[0] is None)
show("expired")

step("lock")
first, second = client.lock("lock", ttl=30), connect().lock("lock", ttl=30)
show(first.acquire(), first.is_acquired(), second.acquire(timeout=1))
taken = []
waiter = threading.Thread(target=lambda: taken.append(second.acquire()))
waiter.start()
show(first.release())
waiter.join()
show(taken, first.is_acquired(), second.is_acquired())
show([answer.TTL for answer in second.refresh()], second.release())

step("auth")
auth = etcdrpc.AuthStub(client.channel)
auth.RoleAdd(etcdrpc.AuthRoleAddRequest(name="app"))
permission = auth_pb2.Permission(permType=2, key=b"app/", range_end=b"app0")
auth.RoleGrantPermission(etcdrpc.AuthRoleGrantPermissionRequest(name="app", perm=permission))
for user, role in (("root", "root"), ("app", "app")):
    auth.UserAdd(etcdrpc.AuthUserAddRequest(name=user, password="secret-" + user))
    if role == "root":
        auth.RoleAdd(etcdrpc.AuthRoleAddRequest(name=role))
    auth.UserGrantRole(etcdrpc.AuthUserGrantRoleRequest(user=user, role=role))
auth.AuthEnable(etcdrpc.AuthEnableRequest())
app = connect(user="app", password="secret-app")
app.put("app/colour", "green")
show(app.get("app/colour")[0])


def refused(call):
    try:
        call()
        show("not refused")
    except grpc.RpcError as error:
        show(error.code(), error.details())
    except etcd3.exceptions.Etcd3Exception as error:
        show(type(error).__name__, error)


refused(lambda: app.put("other", "red"))
refused(lambda: client.get("app/colour"))
refused(lambda: connect(user="app", password="wrong"))
root = connect(user="root", password="secret-root")
credentials = root.call_credentials
stub = etcdrpc.AuthStub(root.channel)
show(list(stub.UserList(etcdrpc.AuthUserListRequest(), credentials=credentials).users))
stub.AuthDisable(etcdrpc.AuthDisableRequest(), credentials=credentials)
show(client.get("app/colour")[0])
print("done")
