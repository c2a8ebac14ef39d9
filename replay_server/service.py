"""The replay service: one place that says which method of zero.v1.ReplayService is answered by whom."""

from collections.abc import Awaitable, Callable

import grpc

from replay_server.border import Border, Call, parse
from replay_server.catalog import Catalog
from replay_server.inserting import Inserter
from replay_server.lease_book import LeaseBook
from replay_server.limits import InFlight
from replay_server.processes import Process, ProcessRegistry
from replay_server.reading import Reader
from replay_server.redis_store import RedisStore
from replay_server.sampling import Sampler
from replay_server.served_table import ServedTable
from replay_server.weights import WeightsKeeper
from zero.wire import codec, replay_pb2

REPLAY_SERVICE = "zero.v1.ReplayService"
INSERT_HEALTH = "zero.v1.ReplayService.Insert"
"""The health name that is NOT_SERVING while Redis is away and nothing can be inserted durably; samples go on then."""


class ReplayService:
    """zero.v1.ReplayService: tables, updates in place, and what the server holds."""

    def __init__(
        self,
        catalog: Catalog,
        inserter: Inserter,
        sampler: Sampler,
        weights: WeightsKeeper,
        processes: ProcessRegistry,
        leases: LeaseBook,
        store: RedisStore,
        in_flight: InFlight,
    ) -> None:
        """All collaborators are the server's own."""
        self._catalog = catalog
        self._inserter = inserter
        self._sampler = sampler
        self._weights = weights
        self._processes = processes
        self._leases = leases
        self._store = store
        self._in_flight = in_flight

    def handlers(self, border: Border) -> grpc.GenericRpcHandler:
        """The methods, taking and giving bytes."""
        small: dict[str, Callable[[bytes, Call], Awaitable[bytes]]] = {
            "CreateTable": self._create_table,
            "SetRateLimiter": self._set_rate_limiter,
            "ResetTable": self._reset_table,
            "DeleteTable": self._delete_table,
            "Sample": self._sampler.sample,
            "UpdatePriorities": self._update_priorities,
            "DeleteTrajectories": self._delete_trajectories,
            "VerifyTable": self._verify_table,
            "RegisterProcess": self._register_process,
            "AcquireLease": self._acquire_lease,
            "ReleaseLease": self._release_lease,
        }
        reader = Reader(self._catalog, border)
        return grpc.method_handlers_generic_handler(
            REPLAY_SERVICE,
            {
                **{name: border.unary(method) for name, method in small.items()},
                "GetServerInfo": border.unary(self._get_server_info, while_closed=True),
                "Insert": border.unary(self._inserter.insert, is_large=True),
                "UpdateColumns": border.unary(self._update_columns, is_large=True),
                "InsertStream": border.streaming(self._inserter.insert_stream),
                "SampleStream": border.streaming(self._sampler.sample_stream),
                "ReadTrajectories": border.streaming(reader.read_trajectories),
                "ReadPriorities": border.streaming(reader.read_priorities),
            },
        )

    async def _create_table(self, data: bytes, _: Call) -> bytes:
        request = parse(replay_pb2.CreateTableRequest, data)
        created = await self._catalog.create(codec.decode_table_config(request.table))
        return replay_pb2.CreateTableResponse(created=created).SerializeToString()

    async def _set_rate_limiter(self, data: bytes, _: Call) -> bytes:
        request = parse(replay_pb2.SetRateLimiterRequest, data)
        await self._catalog.set_rate_limiter(request.table, codec.decode_rate_limiter(request.rate_limiter))
        return replay_pb2.SetRateLimiterResponse().SerializeToString()

    async def _reset_table(self, data: bytes, _: Call) -> bytes:
        request = parse(replay_pb2.ResetTableRequest, data)
        deleted = await self._catalog.reset(request.table)
        return replay_pb2.ResetTableResponse(deleted=deleted).SerializeToString()

    async def _delete_table(self, data: bytes, _: Call) -> bytes:
        request = parse(replay_pb2.DeleteTableRequest, data)
        await self._catalog.delete(request.table)
        return replay_pb2.DeleteTableResponse().SerializeToString()

    async def _update_priorities(self, data: bytes, _: Call) -> bytes:
        request = parse(replay_pb2.UpdatePrioritiesRequest, data)
        table = self._catalog.find(request.table)
        updated, gone = table.update_priorities(codec.decode_priority_updates(request.updates))
        return replay_pb2.UpdatePrioritiesResponse(updated=updated, evicted=gone).SerializeToString()

    async def _update_columns(self, data: bytes, _: Call) -> bytes:
        request = parse(replay_pb2.UpdateColumnsRequest, data)
        served = self._catalog.find(request.table)
        updates = codec.decode_column_updates(request, served.table.config.signature, self._in_flight.max_message_bytes)
        done = await served.update_columns(updates)
        return replay_pb2.UpdateColumnsResponse(
            updated=done.updated, evicted=done.evicted, outdated=done.outdated
        ).SerializeToString()

    async def _delete_trajectories(self, data: bytes, _: Call) -> bytes:
        request = parse(replay_pb2.DeleteTrajectoriesRequest, data)
        served = self._catalog.find(request.table)
        deleted = await served.delete(codec.decode_trajectory_filter(request.filter))
        return replay_pb2.DeleteTrajectoriesResponse(deleted=deleted).SerializeToString()

    async def _verify_table(self, data: bytes, _: Call) -> bytes:
        request = parse(replay_pb2.VerifyTableRequest, data)
        found = await self._catalog.verify(request.table)
        return replay_pb2.VerifyTableResponse(
            entries=found.entries, chunks=found.chunks, bytes=found.bytes, problems=found.problems
        ).SerializeToString()

    async def _get_server_info(self, data: bytes, _: Call) -> bytes:
        parse(replay_pb2.GetServerInfoRequest, data)
        recovery = self._catalog.recovery
        return replay_pb2.GetServerInfoResponse(
            tables=[_table_info(served) for served in self._catalog.tables()],
            weights_version=self._weights.newest.version,
            appendfsync=self._store.appendfsync,
            recovery=None
            if recovery is None
            else replay_pb2.RecoveryInfo(
                table=recovery.table, entries_loaded=recovery.entries_loaded, entries_total=recovery.entries_total
            ),
            in_flight_bytes=self._in_flight.num_bytes,
            max_in_flight_bytes=self._in_flight.max_bytes,
            store_away_because=self._catalog.store_away_because,
        ).SerializeToString()

    async def _acquire_lease(self, data: bytes, _: Call) -> bytes:
        request = parse(replay_pb2.AcquireLeaseRequest, data)
        self._catalog.find(request.table)
        token = await self._leases.acquire(
            request.table, request.name, request.holder, request.ttl_seconds, shared=request.shared
        )
        return replay_pb2.AcquireLeaseResponse(token=token).SerializeToString()

    async def _release_lease(self, data: bytes, _: Call) -> bytes:
        request = parse(replay_pb2.ReleaseLeaseRequest, data)
        await self._leases.release(request.table, request.name, request.holder)
        return replay_pb2.ReleaseLeaseResponse().SerializeToString()

    async def _register_process(self, data: bytes, _: Call) -> bytes:
        request = parse(replay_pb2.RegisterProcessRequest, data)
        self._processes.register(Process(request.role, request.process_id, request.metrics_address, request.pid))
        return replay_pb2.RegisterProcessResponse(ttl_seconds=self._processes.ttl_seconds).SerializeToString()


def _table_info(served: ServedTable) -> replay_pb2.TableInfo:
    table = served.table
    return replay_pb2.TableInfo(
        config=codec.encode_table_config(table.config),
        num_steps=table.num_steps,
        num_trajectories=table.num_trajectories,
        inserted_steps=table.inserted_steps,
        inserted_trajectories=table.inserted_trajectories,
        sampled_positions=table.sampled_positions,
        insert_blocked_because=served.why_inserts_wait(),
        sample_blocked_because=served.why_samples_wait(),
        num_items=table.num_items,
        memory_bytes=table.memory_bytes,
        rate_limiter=_rate_limiter_info(served),
        removed_trajectories=table.removed_trajectories,
        mass=table.mass,
        updated_steps=table.updated_steps,
    )


def _rate_limiter_info(served: ServedTable) -> replay_pb2.RateLimiterInfo:
    counts = served.limiter.counts()
    inserts, samples = served.waiting
    return replay_pb2.RateLimiterInfo(
        config=codec.encode_rate_limiter(served.limiter.config),
        inserted=counts.inserted - (counts.origin or 0),
        sampled=counts.sampled,
        waiting_inserts=inserts,
        waiting_samples=samples,
    )
