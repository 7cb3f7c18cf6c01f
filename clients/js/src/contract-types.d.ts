// The shape of a contract as a type, and what the client derives from it. `tidewire-types` writes such a type from a contract file:
//
//   export interface Contract {
//     channels: {
//       'room:{room}': {
//         events: {
//           'chat.message': { data: ChatMessage; delivery: 'durable'; publish: true };
//           'chat.typing': { data: ChatTyping; delivery: 'ephemeral'; publish: true };
//           'board.metric': { data: Metric; delivery: 'latest'; publish: false };
//         };
//         presence: PresenceInfo;
//       };
//     };
//     calls: {
//       'order.quote': { request: OrderQuoteRequest; reply: OrderQuoteReply };
//     };
//   }
//
//   const client = new Tidewire<Contract>('/ws', { token });

/** The delivery class of an event type. */
export type Delivery = 'durable' | 'latest' | 'ephemeral';

/** One event type of a channel. */
export interface EventContract {
  /** What the schema allows. */
  data: any;
  delivery: Delivery;
  /** Whether some client may publish it; false if only the backend may. */
  publish: boolean;
}

/** One pattern of channels. */
export interface ChannelContract {
  /** By event type. */
  events: Record<string, EventContract>;
  /** The `info` of a user, in channels with presence; absent in others. */
  presence?: any;
}

/** One call: what a client asks, and what the backend answers. */
export interface CallContract {
  request: any;
  reply: any;
}

/** The least that a contract is. Without a type argument, a client takes every channel and event. */
export interface AnyContract {
  channels: Record<string, ChannelContract>;
  /** By name; absent without calls. */
  calls?: Record<string, CallContract>;
}

/** What a type argument of `Tidewire` must be. Interfaces have no index signature, so this is weaker than `AnyContract`. */
export interface ContractLike {
  channels: object;
  calls?: object;
}

/** The names of a pattern: `room:{room}` gives `room:${string}`. */
export type NameOf<Pattern extends string> = Pattern extends `${infer Head}{${string}}${infer Tail}`
  ? `${Head}${string}${NameOf<Tail>}`
  : Pattern;

/** The patterns of a contract. */
export type PatternsOf<C extends ContractLike> = keyof C['channels'] & string;

/** The channel names of a contract. */
export type ChannelName<C extends ContractLike> = NameOf<PatternsOf<C>>;

/** What a handle keeps of a channel's name: without a contract, all handles are alike. */
export type NameIn<C extends ContractLike, Name extends string> = string extends PatternsOf<C> ? string : Name;

/** Whether a name matches a pattern, segment by segment: `room:{room}` does not match `room:1:notes`. */
type Matches<Pattern extends string, Name extends string> = Pattern extends `${infer P}:${infer Ps}`
  ? Name extends `${infer N}:${infer Ns}`
    ? N extends NameOf<P>
      ? Matches<Ps, Ns>
      : false
    : false
  : Name extends `${string}:${string}`
    ? false
    : Name extends NameOf<Pattern>
      ? true
      : false;

/** The pattern that declares a channel. */
export type PatternOf<C extends ContractLike, Name extends string> = string extends PatternsOf<C>
  ? string
  : { [P in PatternsOf<C>]: Matches<P, Name> extends true ? P : never }[PatternsOf<C>];

/** The declaration of a channel. */
export type ChannelOf<C extends ContractLike, Name extends string> = C['channels'][PatternOf<C, Name> & keyof C['channels']];

/** The declarations of the events of a channel, by type. */
export type EventsOf<C extends ContractLike, Name extends string> =
  ChannelOf<C, Name> extends { events: infer Events } ? Events : Record<string, EventContract>;

/** The event types of a channel. */
export type EventType<C extends ContractLike, Name extends string> = keyof EventsOf<C, Name> & string;

/** The event types of a channel with one of these delivery classes. */
export type TypeWith<C extends ContractLike, Name extends string, D extends Delivery> = {
  [T in EventType<C, Name>]: EventsOf<C, Name>[T] extends { delivery: infer Given }
    ? [Extract<Given, D>] extends [never]
      ? never
      : T
    : never;
}[EventType<C, Name>];

/** The event types of a channel with one of these delivery classes that clients may publish. */
export type PublishedType<C extends ContractLike, Name extends string, D extends Delivery> = {
  [T in TypeWith<C, Name, D>]: EventsOf<C, Name>[T] extends { publish: false } ? never : T;
}[TypeWith<C, Name, D>];

/** The data of an event type. */
export type DataOf<C extends ContractLike, Name extends string, Type extends string> =
  Type extends EventType<C, Name> ? (EventsOf<C, Name>[Type] extends { data: infer Data } ? Data : any) : any;

/** The `info` that presence shows of a user. */
export type PresenceInfo<C extends ContractLike, Name extends string> =
  ChannelOf<C, Name> extends { presence?: infer Info } ? Exclude<Info, undefined> : any;

/** An event of a channel. */
export type EventOf<C extends ContractLike, Name extends string, Type extends string = EventType<C, Name>> =
  Type extends string ? Omit<import('./messages.js').Event, 'type' | 'channel' | 'data'> & { type: Type; channel: Name; data: DataOf<C, Name, Type> } : never;

/** The declarations of the calls of a contract, by name. */
export type CallsOf<C extends ContractLike> = C extends { calls: infer Calls } ? Calls : string extends PatternsOf<C> ? Record<string, CallContract> : {};

/** The names of the calls of a contract. */
export type CallName<C extends ContractLike> = keyof CallsOf<C> & string;

/** What a client asks in a call. */
export type CallRequest<C extends ContractLike, Name extends string> = Name extends CallName<C>
  ? CallsOf<C>[Name] extends { request: infer Request } ? Request : any
  : any;

/** What the backend replies to a call. */
export type CallReply<C extends ContractLike, Name extends string> = Name extends CallName<C>
  ? CallsOf<C>[Name] extends { reply: infer Reply } ? Reply : any
  : any;
