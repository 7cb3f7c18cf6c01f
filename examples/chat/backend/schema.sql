-- The tables of the chat. The backend runs this file at each start.

CREATE TABLE IF NOT EXISTS users (
    name          text PRIMARY KEY,
    email         text NOT NULL UNIQUE,
    password_hash text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS sessions (
    token_hash bytea PRIMARY KEY,          -- the cookie itself is stored nowhere
    user_name  text NOT NULL REFERENCES users,
    token_id   text NOT NULL,              -- `jti` of the session's Tidewire tokens, so that logging out revokes them
    expires_at timestamptz NOT NULL
);

CREATE TABLE IF NOT EXISTS login_failures (
    user_name text NOT NULL,
    at        timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS login_failures_by_time ON login_failures (at);

CREATE TABLE IF NOT EXISTS rooms (
    id         text PRIMARY KEY,
    title      text NOT NULL,
    invitation text NOT NULL UNIQUE,       -- who has this code may join
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS members (
    room        text NOT NULL REFERENCES rooms ON DELETE CASCADE,
    user_name   text NOT NULL REFERENCES users,
    read_until  bigint NOT NULL DEFAULT 0, -- number of the newest message that the member has seen
    mailed_until bigint NOT NULL DEFAULT 0, -- number of the message of the last e-mail
    joined_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (room, user_name)
);
CREATE INDEX IF NOT EXISTS members_by_user ON members (user_name);

CREATE TABLE IF NOT EXISTS messages (
    number   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- in the order of the room
    entry_id text NOT NULL UNIQUE,         -- of the webhook: a repeated entry is stored once
    room     text NOT NULL REFERENCES rooms ON DELETE CASCADE,
    sender   text NOT NULL,
    event_id text NOT NULL,                -- the id that the sender's page has given
    sent_at  timestamptz NOT NULL,
    text     text NOT NULL
);
CREATE INDEX IF NOT EXISTS messages_by_room ON messages (room, number);
CREATE INDEX IF NOT EXISTS messages_by_event ON messages (room, event_id);

-- The outbox: e-mails are written in the transaction that stores their message, and sent afterwards.
CREATE TABLE IF NOT EXISTS mails (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_name   text NOT NULL REFERENCES users,
    subject     text NOT NULL,
    body        text NOT NULL,
    attempts    integer NOT NULL DEFAULT 0,
    next_try_at timestamptz NOT NULL DEFAULT now(),
    sent_at     timestamptz
);
CREATE INDEX IF NOT EXISTS mails_to_send ON mails (next_try_at) WHERE sent_at IS NULL;
