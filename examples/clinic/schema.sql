create table if not exists clinic_payment (
    payment_id text primary key,
    reservation_id text not null unique,
    booking_id text unique,
    body text not null
)
