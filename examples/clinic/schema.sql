create table if not exists clinic_payment (
    payment_id text primary key,
    reservation_id text not null unique,
    booking_id text unique,
    subject text not null,
    expert_id text not null,
    body text not null
);
create index if not exists clinic_payment_subject on clinic_payment (subject) where booking_id is not null;
create index if not exists clinic_payment_expert on clinic_payment (expert_id) where booking_id is not null;
create table if not exists clinic_user (
    id text primary key,
    body text not null
);
create table if not exists clinic_mail (
    id text primary key,
    position text not null,
    recipient text not null,
    body text not null
);
create index if not exists clinic_mail_recipient on clinic_mail (recipient, position);
create table if not exists clinic_transfer (
    id text primary key,
    state text not null,
    approved_by text,
    approved_at text
);
create table if not exists provider_session (
    payment_id text primary key,
    state text not null,
    untold text
);
create index if not exists provider_session_untold on provider_session (untold) where untold is not null;
create table if not exists provider_customer (
    user_id text primary key,
    id text not null
);
create table if not exists provider_refund (
    payment_id text primary key
)
