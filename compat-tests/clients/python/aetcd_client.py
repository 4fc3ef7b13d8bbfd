"""Uses a server by the library aetcd of Python, which has no TLS, and prints what it sees."""
import asyncio
import os
import sys

import aetcd
import grpc
from aetcd import rpc

host, port = os.environ["ENDPOINT"].split(":")


def connect(**who):
    return aetcd.Client(host=host, port=int(port), timeout=20, **who)


def step(name):
    print("==", name)


def show(*what):
    print(*what, flush=True)


async def until(ready):
    loop = asyncio.get_running_loop()
    end = loop.time() + 60
    while True:
        try:
            if await ready():
                return
        except (aetcd.exceptions.ClientError, grpc.RpcError):
            pass
        if loop.time() > end:
            raise TimeoutError
        await asyncio.sleep(0.1)


async def refused(call):
    try:
        await call
        show("not refused")
    except grpc.RpcError as error:
        show(error.code(), error.details())
    except aetcd.exceptions.ClientError as error:
        show(type(error).__name__, error)


async def keys(client):
    step("kv")
    show((await client.put(b"a", b"1")).header.revision)
    show((await client.put(b"a", b"2", prev_kv=True)).prev_kv.value)
    await client.put(b"b", b"3")
    found = await client.get(b"a")
    show(found.value, found.create_revision, found.mod_revision, found.version, found.lease)
    show([kv.value for kv in await client.get_range(b"a", b"c", sort_order="descend")])
    show(await client.get(b"none"))
    show((await client.delete(b"b", prev_kv=True)).prev_kv.value, await client.delete(b"none"))
    await client.compact(2)
    old = rpc.RangeRequest(key=b"a", revision=1)
    await refused(client.kvstub.Range(old))

    step("txn")
    for wanted in (b"2", b"other"):
        done, answers = await client.transaction(
            compare=[client.transactions.value(b"a") == wanted],
            success=[client.transactions.put(b"t", b"x"), client.transactions.get(b"a")],
            failure=[client.transactions.get(b"t"), client.transactions.delete(b"t")],
        )
        show(done, [[value for value, _ in a] if isinstance(a, list) else "other" for a in answers])
    show(await client.replace(b"a", b"2", b"4"), await client.replace(b"a", b"2", b"5"))


async def watch(client):
    """The library ends its watches with the connection: begins them again where they were."""
    step("watch")
    seen = []
    first = (await client.put(b"x", b"before")).header.revision + 1

    async def collect():
        revision = first
        while True:
            try:
                async for event in await client.watch_prefix(b"w/", start_revision=revision):
                    seen.append((event.kind, event.kv.key, event.kv.value, event.kv.mod_revision))
                    revision = event.kv.mod_revision + 1
            except (aetcd.exceptions.ClientError, grpc.RpcError):
                await asyncio.sleep(0.1)

    async def has(count):
        return len(seen) >= count

    task = asyncio.create_task(collect())
    await client.put(b"w/1", b"one")
    await client.put(b"x", b"not watched")
    await client.delete(b"w/1")
    await until(lambda: has(2))
    print("RESTART", flush=True)
    await asyncio.to_thread(sys.stdin.readline)

    async def put():
        return await client.put(b"w/2", b"two")

    await until(put)
    await client.put(b"w/3", b"three")
    await until(lambda: has(4))
    task.cancel()
    for event in seen:
        show(*event)


async def lease(client):
    step("lease")
    kept = await client.lease(30)
    await client.put(b"l", b"leased", lease=kept)
    show(await kept.granted_ttl(), 25 < await kept.remaining_ttl() <= 30, list(await kept.keys()))
    show((await kept.refresh()).TTL)
    await kept.revoke()
    show(await client.get(b"l"), (await client.get_lease_info(kept.id)).TTL)
    short = await client.lease(2)
    await client.put(b"s", b"short", lease=short)

    async def gone():
        return await client.get(b"s") is None

    await until(gone)
    show("expired")


async def lock(client):
    step("lock")
    first, second = client.lock(b"lock", ttl=30), client.lock(b"lock", ttl=30)
    show(await first.acquire(), await first.is_acquired(), await second.acquire(timeout=1))
    waiting = asyncio.create_task(second.acquire(timeout=60))
    show(await first.release(), await waiting, await first.is_acquired(), await second.is_acquired())
    show((await second.refresh()).TTL, await second.release())


async def auth(client):
    step("auth")
    stub = rpc.AuthStub(client.channel)
    await stub.RoleAdd(rpc.AuthRoleAddRequest(name="app"))
    grant = rpc.AuthRoleGrantPermissionRequest(name="app")
    grant.perm.permType, grant.perm.key, grant.perm.range_end = 2, b"app/", b"app0"
    await stub.RoleGrantPermission(grant)
    await stub.RoleAdd(rpc.AuthRoleAddRequest(name="root"))
    for user in ("root", "app"):
        await stub.UserAdd(rpc.AuthUserAddRequest(name=user, password="secret-" + user))
        await stub.UserGrantRole(rpc.AuthUserGrantRoleRequest(user=user, role=user))
    await stub.AuthEnable(rpc.AuthEnableRequest())
    async with connect(username="app", password="secret-app") as app:
        await app.put(b"app/colour", b"green")
        show((await app.get(b"app/colour")).value)
        await refused(app.put(b"other", b"red"))
    await refused(client.get(b"app/colour"))
    await refused(connect(username="app", password="wrong").connect())
    async with connect(username="root", password="secret-root") as root:
        stub = rpc.AuthStub(root.channel)
        users = await stub.UserList(rpc.AuthUserListRequest(), metadata=root.metadata)
        show(list(users.users))
        await stub.AuthDisable(rpc.AuthDisableRequest(), metadata=root.metadata)
    show((await client.get(b"app/colour")).value)


async def main():
    async with connect() as client:
        await keys(client)
        await watch(client)
        await lease(client)
        await lock(client)
        await auth(client)
    show("done")


asyncio.run(main())
