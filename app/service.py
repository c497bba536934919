"""The parts of one server and their lifecycle: opened in the background, closed at shutdown.

Joins settings, store, live codebooks, journal, queue and the model. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from threading import Event

from app.access.key_ring import KeyRing
from app.access.links import Links, file_secret, shared_secret
from app.access.rates import Rates
from app.background.canary_guard import CanaryGuard
from app.background.cusum_watch import CusumWatch
from app.background.live_traffic import LiveTraffic
from app.background.shadow_feed import ShadowFeed
from app.background.storage_watch import Storage
from app.background.trial_keeper import TrialKeeper
from app.metrics.counts import Counts
from app.queue import ImproveQueue
from codebook.live import LiveCodebooks
from codebook.store import CodebookStore
from core.bucket.bucket import UNREACHABLE, Bucket
from core.bucket.shared_folder import SharedFolder
from core.errors import BadModel, BadNumber, NoBucket, SafeCBError, Stopping, Unavailable
from core.settings import Settings
from core.wire import RedisNames
from engine.image_result import ImageResult
from engine.model import ImageRequest, ModelFacts, Sampling
from engine.runner.served import Served
from engine.scheduler.scheduler import Scheduler
from engine.scheduler.thread_budget import count_cores
from records.bucket_flags import open_flags
from records.image_log import ImageLog, ImageMemory
from records.journal import Journal
from records.shared_images import SharedImages

log = logging.getLogger(__name__)

Load = Callable[[Settings], Served]

BUCKET_AGAIN_S = 1.0  # between two tries of a start whose bucket does not answer


@dataclass(frozen=True)
class Engine:
    """A loaded model: its facts, and the scheduler that owns it.

    tokenize: the token ids of a prompt; raises BadInput, naming `prompt`, if the model cannot read it; thread-safe.
    """

    facts: ModelFacts
    scheduler: Scheduler
    tokenize: Callable[[str], list[int]]


class Service:
    """Everything that a route may use. Until `open` has finished there is no engine and no active codebook."""

    def __init__(self, settings: Settings, load: Load) -> None:
        self.settings = settings
        self.store = CodebookStore.of(settings)
        self.live = LiveCodebooks(self.store, stale_limit=settings.stale_limit)
        self.journal = Journal.of(settings)
        self.queue = ImproveQueue(settings.redis_url, RedisNames.of(settings))
        self.images = _images(settings)
        self.policies = SharedFolder.policies(settings)
        self.cusum = CusumWatch(self.live, settings)
        self.traffic = LiveTraffic(self.images, lambda: self.live.active.version, self.cusum.state)
        self.guard = CanaryGuard(self.live, settings.judge)
        self.trials = TrialKeeper(self.live, self.guard, self.journal)
        self.shadow = ShadowFeed(self.live, settings)
        self.flags = open_flags(settings)
        self.storage = Storage(settings.home, self.store)
        self.keys = KeyRing(settings)
        self.rates = Rates(settings.redis_url, RedisNames.of(settings).rates)
        self.counts = Counts()
        self.links = Links(_link_secret(settings))
        self.failure: SafeCBError | None = None  # why the model could not be opened
        self.stopping = False  # whether the server drains: new requests are refused
        self._load = load
        self._engine: Engine | None = None
        self._waits_for: NoBucket | None = None

    @property
    def engine(self) -> Engine:
        """The loaded model. Raises Unavailable during loading and shutdown, or the error of a failed load."""
        if self.failure is not None:
            raise self.failure
        if self.stopping:
            raise Stopping
        if self._engine is None:
            raise self._waits_for or Unavailable("the model is still loading", retry_after=2)
        if self.is_broken:
            raise Unavailable("the engine has failed; the server starts again", retry_after=10)
        return self._engine

    @property
    def is_open(self) -> bool:
        """Whether images can be drawn."""
        return self._engine is not None

    @property
    def is_broken(self) -> bool:
        """Whether the scheduler has failed for good in this process."""
        return self._engine is not None and self._engine.scheduler.broken

    def open(self, ended: Event) -> None:
        """Load the model, create or check its store, draw and judge one image. Blocks; sets `engine` or `failure`.

        ended: whether to wait no longer for a bucket that does not answer.
        """
        try:
            model = self._load(self.settings)
            if model.facts.revision is not None:  # what lies beside the weights is read of the same commit
                self.settings = replace(self.settings, model=model.facts.model_id)
            self._open_store(model, ended)
            with self.live.lease() as codebook:
                cores, lookahead = self.settings.cores or count_cores(), self.settings.lookahead
                judged = self.settings.judge_share
                scheduler = Scheduler(model, model.kv_rows(), cores, lookahead=lookahead, judge_share=judged)
                first = ImageRequest("warm-up", Sampling(seed=0), codebook)
                (image,) = scheduler.submit_draw([first]).result()
                if image.verdict is None:  # improve jobs judge all the same, whatever SAFECB_JUDGE says
                    scheduler.submit(partial(_judge, image)).result()
        except BadNumber as error:
            self.failure = BadModel(f"{self.settings.model} cannot be served: {error}")
        except SafeCBError as error:
            self.failure = error
        except Exception as error:  # a full disk, a bug: this server will never be ready
            log.exception("the model cannot be served")
            self.failure = BadModel(f"{self.settings.model} cannot be served: {error}")
        else:
            self._engine = Engine(model.facts, scheduler, model.tokenize)

    def _open_store(self, model: Served, ended: Event) -> None:
        """Create or check the store, and follow it. Waits for a bucket that does not answer: the model is loaded."""
        while True:
            try:
                self.store.initialise(model.base_codebook(), model.facts.shown())
                self.live.start()
                break
            except NoBucket as error:
                if error.state != UNREACHABLE or ended.wait(BUCKET_AGAIN_S):
                    raise
                if self._waits_for is None:
                    log.warning("the start waits for its bucket: %s", error)
                self._waits_for = error
        self._waits_for = None

    def give_up(self) -> None:
        """Fail all accepted and unfinished requests with Stopping."""
        if self._engine is not None:
            self._engine.scheduler.give_up()

    def close(self) -> None:
        """Finish the running requests and release everything. Blocks."""
        if self._engine is not None:
            self._engine.scheduler.close()
        for user in (self.queue, self.rates, self.cusum):
            user.close()


def _judge(image: ImageResult, model: Served) -> None:
    """Have an image judged that was not. Raises BadNumber as the model does."""
    model.judge(model.decode(image.tokens[None], image.request.codebook.pixel))


def _images(settings: Settings) -> ImageLog:
    """The image log of one machine, lent to others where there are any."""
    own = ImageMemory(settings.home / "images.db", settings.keep_images, settings.keep_hours)
    if settings.bucket is None or settings.redis_url is None:
        return own
    return SharedImages(own, settings.redis_url, RedisNames.of(settings).images, settings.keep_hours)


def _link_secret(settings: Settings) -> Callable[[], bytes]:
    """The secret of signed links: one for all servers of a deployment."""
    if settings.bucket is None:
        return file_secret(settings.home / "link.key")
    return shared_secret(Bucket(settings.bucket))
