// What an ordinary client asks: matrix-js-sdk, which Element Web is made of, does what a person does, and each request is
// written down with its time. scripts/limits reads the lines.
//
//   node client.mjs URL USER TOKEN DEVICE sync|sliding NAME...    NAME: the parts to do, in their order
import * as sdk from "matrix-js-sdk";
import { SlidingSync, SlidingSyncEvent, SlidingSyncState } from "matrix-js-sdk/lib/sliding-sync.js";
import { logger } from "matrix-js-sdk/lib/logger.js";

const [url, user, token, device, kind, ...parts] = process.argv.slice(2);
logger.disableAll();
const began = performance.now();
const say = (line) => console.log(JSON.stringify({ at: (performance.now() - began) / 1000, ...line }));
const wait = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

async function fetchFn(input, options = {}) {
    const target = new URL(input);
    const number = fetchFn.count = (fetchFn.count || 0) + 1;
    say({ request: number, method: options.method || "GET", path: target.pathname });
    try {
        const answer = await fetch(input, options);
        say({ ends: number, status: answer.status });
        return answer;
    } catch (error) {
        say({ ends: number, status: 0 });
        throw error;
    }
}

const client = sdk.createClient({ baseUrl: url, userId: user, accessToken: token, deviceId: device, fetchFn,
                                  timelineSupport: true });
const rooms = () => client.getRooms().sort((a, b) => a.roomId < b.roomId ? -1 : 1);

const doing = {
    // A start: initial sync, push rules, filter, versions, and whatever else the library asks.
    async start() {
        let slidingSync;
        if (kind === "sliding") {
            const list = { ranges: [[0, 20]], sort: ["by_recency"], timeline_limit: 20,
                           required_state: [["m.room.create", ""], ["m.room.name", ""], ["m.room.member", "$LAZY"]] };
            slidingSync = new SlidingSync(url, new Map([["list", list]]),
                                          { timeline_limit: 50, required_state: [["*", "*"]] }, client, 30000);
            doing.slidingSync = slidingSync;
        }
        const ready = new Promise((done) => slidingSync
            ? slidingSync.on(SlidingSyncEvent.Lifecycle, (state) => state === SlidingSyncState.Complete && done())
            : client.on("sync", (state) => state === "PREPARED" && done()));
        await client.startClient({ initialSyncLimit: 20, lazyLoadMembers: true, slidingSync });
        await ready;
        await Promise.all([client.getDevices(), client.getPushers(), client.getProfileInfo(user), client.getCapabilities()]);
    },
    // A room after the other, as fast as a person who looks for something: members, a page, pictures, a receipt.
    async rooms() {
        for (const room of rooms()) {
            if (doing.slidingSync) doing.slidingSync.modifyRoomSubscriptions(new Set([room.roomId]));
            const members = room.loadMembersIfNeeded();
            await client.scrollback(room, 30);
            await members;
            const last = room.getLiveTimeline().getEvents().at(-1);
            if (last) await client.sendReadReceipt(last).catch(() => {});
            // Element asks for a thumbnail of each member who is on the screen.
            await Promise.all(room.getMembers().slice(0, 20).map((member) => {
                const name = member.userId.slice(1).split(":")[0];
                const picture = `${url}/_matrix/client/v1/media/thumbnail/example.org/${name}?width=32&height=32&method=crop`;
                return fetchFn(picture, { headers: { Authorization: `Bearer ${token}` } }).then((a) => a.arrayBuffer());
            }));
            await wait(1);
        }
    },
    // Ten short messages, as fast as they are typed, with typing notices.
    async write() {
        const room = rooms()[0];
        for (let n = 0; n < 10; n++) {
            await client.sendTyping(room.roomId, true, 5000);
            await client.sendTextMessage(room.roomId, `and ${n}`);
        }
    },
    // Others write, and this client listens.
    async listen() {
        say({ listens: true });
        await wait(20);
    },
};

for (const part of parts) {
    say({ part });
    await doing[part]();
}
say({ part: "end" });
client.stopClient();
process.exit(0);
